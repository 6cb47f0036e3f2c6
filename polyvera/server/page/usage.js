// Usage: requests and tokens, as they are accounted.

import { byId, make, say } from "./element.js";
import { get } from "./server.js";
import { isShown, SHOWN } from "./views.js";
import { count } from "./words.js";

const DAY_MS = 86_400_000;
const MOST_ROWS = 25;
const SUMS = { requests: "Requests", prompt_tokens: "Prompt tokens", completion_tokens: "Answer tokens" };
const TITLES = { day: "Day", tenant: "Tenant", adapter: "Adapter" };
const EMPTY = { tenant: "no tenant", adapter: "the base" };

export function start() {
  document.addEventListener(SHOWN, restart);
  for (const id of ["usage-by", "usage-days"]) byId(id).addEventListener("change", restart);
}

export async function restart() {
  if (!isShown("usage")) return;
  const groups = byId("usage-by").value.split(",");
  const since = new Date(Date.now() - (byId("usage-days").value - 1) * DAY_MS).toISOString().slice(0, 10);
  try {
    const { data, has_more: hasMore } = await get(`v1/usage?${new URLSearchParams({ group_by: groups, since })}`);
    show(groups, data, hasMore);
  } catch (error) {
    byId("usage-table").hidden = true;
    say(byId("usage-status"), error.message);
  }
}

function show(groups, rows, hasMore) {
  const isByDay = groups[0] === "day";
  const sorted = isByDay ? rows.toReversed() : rows.toSorted((a, b) => b.total_tokens - a.total_tokens);
  const [head, body] = byId("usage-table").children;
  head.replaceChildren(make("tr", {},
    ...groups.map((key) => make("th", { scope: "col", textContent: TITLES[key] })),
    ...Object.values(SUMS).map((textContent) => make("th", { scope: "col", className: "number", textContent }))));
  body.replaceChildren(...sorted.slice(0, MOST_ROWS).map((row) => line(groups, row)));
  byId("usage-table").hidden = !rows.length;
  say(byId("usage-status"), summary(rows, hasMore));
}

function summary(rows, hasMore) {
  if (!rows.length) return "Nothing was used in this time.";
  const sum = (key) => count(rows.reduce((all, row) => all + row[key], 0));
  const part = rows.length > MOST_ROWS || hasMore ? `; the first ${MOST_ROWS} of ${count(rows.length)}${hasMore ? " and more" : ""} rows` : "";
  return `${sum("requests")} requests, ${sum("prompt_tokens")} tokens of prompts, ${sum("completion_tokens")} of answers${part}.`;
}

function line(groups, row) {
  const [first, ...rest] = groups.map((key) => row[key] || EMPTY[key]);
  return make("tr", {},
    make("th", { scope: "row", textContent: first }),
    ...rest.map((textContent) => make("td", { textContent })),
    ...Object.keys(SUMS).map((key) => make("td", { className: "number", textContent: count(row[key]) })));
}
