// Views: the parts of the page, of which one is shown, named by the address after its #.

import { byId } from "./element.js";

export const SHOWN = "view-shown";
const links = () => [...byId("views").querySelectorAll("a")];
let current = "";

export function start() {
  window.addEventListener("hashchange", show);
  show();
}

// Offers these views alone; the first is shown where the one that was is not among them.
export function offer(names) {
  for (const link of links()) link.hidden = !names.includes(name(link));
  show();
}

export function isShown(view) {
  return current === view;
}

function name(link) {
  return link.getAttribute("href").slice(1);
}

function show() {
  const offered = links().filter((link) => !link.hidden).map(name);
  const wanted = location.hash.slice(1);
  const next = [wanted, current, offered[0]].find((one) => offered.includes(one));
  if (next === current) return;
  current = next;
  for (const view of document.querySelectorAll("[data-view]")) view.hidden = view.id !== current;
  for (const link of links()) {
    if (name(link) === current) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (wanted === current) requestAnimationFrame(() => window.scrollTo(0, 0)); // the ways to other views are there
  document.dispatchEvent(new CustomEvent(SHOWN, { detail: current }));
}
