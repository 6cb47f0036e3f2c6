// Numbers and times in words.

const BYTES = [["GB", 1e9], ["MB", 1e6]];

export function count(number) {
  return number.toLocaleString("en");
}

export function counted(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

// Exact below a million.
export function bytes(number) {
  const [unit, size] = BYTES.find(([, least]) => number >= least) ?? ["B", 1];
  return `${size === 1 ? count(number) : (number / size).toPrecision(3)} ${unit}`;
}

export function score(value) {
  return Number.isInteger(value) ? String(value) : value.toPrecision(3);
}

// ISO 8601 as the reader's own date and minute; none where it is not known.
export function moment(iso) {
  const at = new Date(iso);
  if (!iso || Number.isNaN(at.getTime())) return [];
  const two = (number) => String(number).padStart(2, "0");
  const day = [at.getFullYear(), two(at.getMonth() + 1), two(at.getDate())].join("-");
  return [day, `${two(at.getHours())}:${two(at.getMinutes())}`];
}
