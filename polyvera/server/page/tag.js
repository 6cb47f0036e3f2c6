// Tags: a number and a colour for each adapter, the same wherever the page shows it.

import { make } from "./element.js";

const KEPT = 24; // adapters that have left the batch keep their number while there are no more than these
const GOLDEN = 137.508; // degrees: neighbours in number are far apart in colour
const FIXED = new Map([["base", "B"], [null, "?"]]);
const numbers = new Map();

// Gives numbers to the adapters that run. names: of all of them.
export function number(names) {
  const running = new Set(names);
  for (const name of running) {
    if (!FIXED.has(name) && !numbers.has(name)) numbers.set(name, free(running));
  }
}

// In the order of their numbers, those without one first.
export function inOrder(names) {
  return [...names].sort((a, b) => (numbers.get(a) ?? 0) - (numbers.get(b) ?? 0));
}

// A cell for an adapter: "base", null for one out of this key's scope, or an id.
export function tag(name) {
  const text = FIXED.get(name) ?? numbers.get(name) ?? "";
  const cell = make("span", { className: "tag", textContent: String(text) });
  if (name === null) cell.classList.add("hidden-name");
  else if (numbers.has(name)) {
    cell.classList.add("coloured");
    cell.style.setProperty("--hue", String((numbers.get(name) * GOLDEN) % 360));
  }
  return cell;
}

function free(running) {
  const holders = new Map([...numbers].map(([name, at]) => [at, name]));
  for (let at = 1; ; at += 1) {
    const holder = holders.get(at);
    if (holder === undefined || (numbers.size >= KEPT && !running.has(holder))) {
      numbers.delete(holder);
      return at;
    }
  }
}
