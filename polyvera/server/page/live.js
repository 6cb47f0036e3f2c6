// What runs and is resident, asked about once a second while somebody looks.

import { byId, make, say } from "./element.js";
import { get } from "./server.js";
import { inOrder, number, tag } from "./tag.js";
import { bytes, count, counted } from "./words.js";

const EVERY_MS = 1_000;
const MOST_FREE_CELLS = 256;
const MOST_RUNNING = 8;
const MOST_RESIDENT = 8;
const HIDDEN = "adapters that this key may not see";
let isPaused = false;
let timer;
let asking = new AbortController();
let before = null; // the last totals and when they came

export function start() {
  document.addEventListener("visibilitychange", restart);
  byId("pause").addEventListener("click", () => {
    isPaused = !isPaused;
    byId("pause").setAttribute("aria-pressed", String(isPaused));
    restart();
  });
}

// Asks at once, and again while the tab is seen and the reader has not paused it.
export function restart() {
  clearTimeout(timer);
  asking.abort();
  if (isPaused) say(byId("live-status"), "Paused.");
  else if (!document.hidden) ask();
}

// Nothing of what was seen with one key stays for the next.
export function forget() {
  before = null;
  byId("totals-box").hidden = true;
  for (const id of ["cells", "legend", "resident", "totals", "slots", "live-status"]) byId(id).replaceChildren();
}

async function ask() {
  asking = new AbortController();
  try {
    show(await get("v1/live", asking.signal));
  } catch (error) {
    if (error.name === "AbortError") return;
    say(byId("live-status"), error.message);
    if (error.status === 401) return; // until there is a key
  }
  if (!document.hidden && !isPaused) timer = setTimeout(ask, EVERY_MS);
}

function show(seen) {
  const hidden = Array(seen.hidden_running).fill({ adapter: null, num_tokens: 0 });
  const live = { ...seen, running: [...seen.running, ...hidden] };
  const running = live.running.map((one) => one.adapter);
  number(running);
  say(byId("live-status"), summary(live, new Set(running)));
  showCells(live, running);
  const groups = grouped(live.running);
  const names = inOrder(groups.keys());
  renew(byId("legend"), shortened(names, MOST_RUNNING, (name) => runningLine(name, groups.get(name))));
  showResident(live);
  byId("totals-box").hidden = !live.totals;
  if (live.totals) showTotals(live.totals);
}

function summary(live, names) {
  const rows = `${live.running.length} of ${counted(live.max_rows, "row")} in use`;
  const mixed = names.size ? `, for ${mix(names)}` : "";
  return `${rows}${mixed}. ${live.waiting ? `${counted(live.waiting, "request")} waiting.` : "Nobody waits."}`;
}

function mix(names) {
  const numSeen = [...names].filter((name) => name !== "base" && name !== null).length;
  const parts = [numSeen ? counted(numSeen, "adapter") : "", names.has("base") ? "the base" : "", names.has(null) ? "others" : ""];
  return parts.filter(Boolean).join(" and ");
}

function showCells(live, running) {
  const free = Math.min(live.max_rows, MOST_FREE_CELLS) - running.length;
  const empty = Array.from({ length: Math.max(0, free) }, () => make("span", { className: "tag free" }));
  renew(byId("cells"), [...running.map(tag), ...empty]);
}

function grouped(running) {
  const found = new Map();
  for (const { adapter, num_tokens: tokens } of running) found.set(adapter, [...(found.get(adapter) ?? []), tokens]);
  return found;
}

function runningLine(name, tokens) {
  const sum = tokens.reduce((a, b) => a + b, 0);
  return line(tag(name), name ?? HIDDEN, `${counted(tokens.length, "row")}, ${counted(sum, "token")}`);
}

function showResident(live) {
  const all = live.resident.length + live.hidden_resident;
  const size = live.resident.reduce((sum, one) => sum + one.bytes, 0);
  const hidden = live.hidden_resident ? `, ${counted(live.hidden_resident, "of them", "of them")} out of this key's sight` : "";
  const held = live.resident.length ? `, ${bytes(size)}` : "";
  say(byId("slots"), `${count(all)} of ${counted(live.num_slots, "slot")} taken${hidden}${held}.`);
  renew(byId("resident"), shortened(live.resident, MOST_RESIDENT, residentLine));
}

function residentLine(one) {
  const users = one.users ? `, ${counted(one.users, "request")}` : "";
  return line(tag(one.adapter), one.adapter, `${bytes(one.bytes)}${users}${one.is_pinned ? ", pinned" : ""}`);
}

// The first of them as lines, and how many more there are.
function shortened(all, most, line) {
  const lines = all.slice(0, most).map(line);
  if (all.length > most) lines.push(make("li", { className: "muted", textContent: `and ${count(all.length - most)} more` }));
  return lines;
}

function line(mark, name, facts) {
  mark.ariaHidden = "true";
  const named = make("span", { className: "name", textContent: name });
  return make("li", {}, mark, make("span", {}, named, " ", make("span", { className: "muted", textContent: facts })));
}

function showTotals(totals) {
  const now = performance.now();
  const rows = Object.entries(totals).map(([name, number]) => [name.replaceAll("_", " "), count(number)]);
  if (before) rows.push(["answer tokens a second", count(Math.round(rate(totals, now)))]);
  before = { tokens: totals.answer_tokens, now };
  renew(byId("totals"), rows.map(([name, text]) =>
    make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: text }))));
}

function rate(totals, now) {
  return Math.max(0, (1_000 * (totals.answer_tokens - before.tokens)) / (now - before.now));
}

// Nothing is touched where nothing has changed.
function renew(element, children) {
  const next = element.cloneNode(false);
  next.append(...children);
  if (!next.isEqualNode(element)) element.replaceChildren(...next.childNodes);
}
