// Charts of lines: paths of values that may have gaps, and their colours.

const GOLDEN = 137.508; // degrees between two lines' colours
const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 600;
const HEIGHT = 110;

// Lines in one picture. lines: of each, the runs of its points, [x, y] from 0 to 1 each. hues: of each line.
export function picture(label, lines, hues) {
  const made = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", preserveAspectRatio: "none" });
  made.ariaLabel = label;
  made.append(...lines.flatMap((runs, at) => runs.map((points) => path(points, hues[at]))));
  return made;
}

export function hue(at) {
  return String((190 + at * GOLDEN) % 360);
}

function path(points, colour) {
  const places = points.map(([x, y]) => `${(x * WIDTH).toFixed(1)},${(HEIGHT - 4 - y * (HEIGHT - 10)).toFixed(1)}`);
  const made = svg("path", { d: `M${places.join("L")}${places.length === 1 ? "h1.5" : ""}`, class: "curve" });
  made.style.setProperty("--hue", colour);
  return made;
}

function svg(tag, attributes) {
  const made = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}
