// The table of adapters, a page at a time, by words in their names.

import { byId, make, say } from "./element.js";
import { get } from "./server.js";
import { bytes, count, counted, moment, score } from "./words.js";

const PAGE = 20;
const TYPING_MS = 200;
const SUGGESTIONS = 20;
let listing = new AbortController();
let offset = 0;
let choose = () => {};
let open = () => {};

// chosen(side, name): called where the reader picks an adapter for side "A" or "B". opened(name): where the reader
// wants to see all of it.
export function start(chosen, opened) {
  choose = chosen;
  open = opened;
  let timer;
  byId("filter").addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(list, TYPING_MS);
  });
  byId("sort").addEventListener("change", list);
  byId("refresh").addEventListener("click", list);
  byId("more").addEventListener("click", () => turn(PAGE));
  byId("before").addEventListener("click", () => turn(-PAGE));
}

// The table from its beginning; the names that it shows, or null where there are none to show.
export async function list() {
  offset = 0;
  return show();
}

// The same page again.
export async function show() {
  listing.abort();
  listing = new AbortController();
  const { signal } = listing;
  try {
    const found = await get(address(byId("filter").value.trim(), PAGE, offset, byId("sort").value), signal);
    if (signal.aborted) return null;
    fill(found);
    return found.data.map((one) => one.name);
  } catch (error) {
    if (error.name === "AbortError") return null;
    fill({ data: [], total: 0, has_more: false });
    say(byId("adapters-status"), error.message);
    return null;
  }
}

// The first names with these words in them. Throws Problem.
export async function named(text) {
  const found = await get(address(text, SUGGESTIONS, 0, "name"));
  return found.data.map((one) => one.name);
}

async function turn(step) {
  offset = Math.max(0, offset + step);
  await show();
  byId("adapters-title").scrollIntoView();
}

function address(search, limit, from, sort) {
  return `v1/adapters?${new URLSearchParams({ search, limit, offset: from, sort })}`;
}

function fill({ data, total, has_more: hasMore }) {
  byId("rows").replaceChildren(...data.map(row));
  byId("table").hidden = !data.length;
  byId("more").hidden = !hasMore;
  byId("before").hidden = !offset;
  const isPart = hasMore || offset > 0;
  say(byId("place"), isPart ? `${count(offset + 1)}–${count(offset + data.length)} of ${count(total)}` : "");
  say(byId("adapters-status"), summary(total, byId("filter").value.trim()));
}

function summary(total, words) {
  if (total) return counted(total, "adapter") + (words ? ` with “${words}” in the name` : "");
  if (words) return `No adapter that you may see has “${words}” in its name.`;
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
  const button = make("button", { type: "button", className: "link", textContent: one.id });
  button.addEventListener("click", () => open(one.name));
  const head = make("th", { scope: "row" }, button);
  if (one.labels) head.append(make("span", { className: "muted labels", textContent: one.labels.join(", ") }));
  return head;
}

function cell(title, items, className = "") {
  const shown = items.filter((text) => text !== "");
  const made = make("td", { className }, ...shown.map((text) => make("span", { className: "item", textContent: text })));
  made.dataset.title = title;
  return made;
}

export function pairs(values, word) {
  return Object.entries(values).map(([key, value]) => `${key} ${word(value)}`);
}

function chooser(side, name) {
  const button = make("button", { type: "button", textContent: side, ariaLabel: `Chat with ${name} as ${side}` });
  button.addEventListener("click", () => choose(side, name));
  return button;
}
