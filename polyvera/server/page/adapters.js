// The table of adapters, a page at a time, by the beginning of their names.

import { byId, make, say } from "./element.js";
import { get } from "./server.js";
import { bytes, counted, moment, score } from "./words.js";

const PAGE = 50;
const TYPING_MS = 200;
const SUGGESTIONS = 20;
let listing = new AbortController();
let shown = [];
let choose = () => {};

// chosen(side, name): called where the reader picks an adapter for side "A" or "B".
export function start(chosen) {
  choose = chosen;
  let timer;
  byId("filter").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(list, TYPING_MS);
  });
  byId("refresh").addEventListener("click", list);
  byId("more").addEventListener("click", more);
}

// The table from its beginning; the names that it shows, or null where there are none to show.
export async function list() {
  listing.abort();
  listing = new AbortController();
  return add(listing.signal, true);
}

// The first names that begin with a text. Throws Problem.
export async function named(text) {
  const found = await get(address(text, SUGGESTIONS, ""));
  return found.data.map((one) => one.name);
}

async function more() {
  const before = shown.length;
  if (await add(listing.signal, false)) byId("rows").children[before]?.querySelector("button").focus();
}

// isNew: in place of what is shown, which stays until the answer comes.
async function add(signal, isNew) {
  const prefix = byId("filter").value.trim();
  try {
    const found = await get(address(prefix, PAGE, isNew ? "" : shown.at(-1).name), signal);
    if (signal.aborted) return null;
    if (isNew) empty();
    shown.push(...found.data);
    byId("rows").append(...found.data.map(row));
    show(found.has_more, prefix);
    return shown.map((one) => one.name);
  } catch (error) {
    if (error.name === "AbortError") return null;
    empty();
    show(false, prefix);
    say(byId("adapters-status"), error.message);
    return null;
  }
}

function empty() {
  shown = [];
  byId("rows").replaceChildren();
}

function address(prefix, limit, after) {
  return `v1/adapters?${new URLSearchParams({ prefix, limit, after })}`;
}

function show(hasMore, prefix) {
  byId("table").hidden = !shown.length;
  byId("more").hidden = !hasMore;
  say(byId("adapters-status"), summary(hasMore, prefix));
}

function summary(hasMore, prefix) {
  const beginning = prefix ? ` that begin with “${prefix}”` : "";
  if (shown.length) {
    return hasMore ? `The first ${shown.length}${beginning}; there are more.` : counted(shown.length, "adapter") + beginning;
  }
  if (prefix) return `No adapter that you may see begins with “${prefix}”.`;
  return "There are no adapters that you may see. One that is published appears here at once: PUT /v1/adapters/NAME.";
}

function row(one) {
  const cells = [
    cell("Method", [one.method ?? "its file is damaged"]),
    cell("Rank", [one.rank ?? ""], "number"),
    cell("Size", [bytes(one.bytes)], "number"),
    cell("Scores", pairs(one.scores ?? {}, score)),
    cell("Aliases", pairs(one.aliases, (version) => `@${version}`)),
    cell("Created", moment(one.created)),
    make("td", { className: "choices" }, ...["A", "B"].map((side) => chooser(side, one.name))),
  ];
  return make("tr", {}, name(one), ...cells);
}

function name(one) {
  const head = make("th", { scope: "row", textContent: one.id });
  if (one.labels) head.append(make("span", { className: "muted labels", textContent: one.labels.join(", ") }));
  return head;
}

function cell(title, items, className = "") {
  const shown = items.filter((text) => text !== "");
  const made = make("td", { className }, ...shown.map((text) => make("span", { className: "item", textContent: text })));
  made.dataset.title = title;
  return made;
}

function pairs(values, word) {
  return Object.entries(values).map(([key, value]) => `${key} ${word(value)}`);
}

function chooser(side, name) {
  const button = make("button", { type: "button", textContent: side, ariaLabel: `Chat with ${name} as ${side}` });
  button.addEventListener("click", () => choose(side, name));
  return button;
}
