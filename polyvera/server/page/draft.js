// What the reader has written, kept in the tab: a reload or a failure takes nothing of it.

import { byId } from "./element.js";

const DRAFT = "polyvera.draft";
const ASKED = "polyvera.asked";
const MOST_ASKED = 30;
const FIELDS = ["prompt", "temperature", "max-tokens", "adapter-A", "adapter-B"];
let back = 0; // how many prompts back the reader has gone

// Once the fields are there.
export function start() {
  const kept = read(DRAFT, {});
  for (const id of FIELDS) {
    if (kept[id] !== undefined) byId(id).value = kept[id];
    byId(id).addEventListener("input", keep);
  }
  byId("prompt").addEventListener("keydown", recall);
}

export function keep() {
  write(DRAFT, Object.fromEntries(FIELDS.map((id) => [id, byId(id).value])));
}

// A prompt that was sent.
export function remember(prompt) {
  write(ASKED, [...read(ASKED, []).filter((one) => one !== prompt), prompt].slice(-MOST_ASKED));
  back = 0;
  keep();
}

export function forget() {
  sessionStorage.removeItem(DRAFT);
  sessionStorage.removeItem(ASKED);
  byId("prompt").value = "";
}

function recall(event) {
  const step = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  const asked = read(ASKED, []);
  const isRecalled = back > 0 && byId("prompt").value === asked.at(-back);
  if (!step || (byId("prompt").value && !isRecalled)) return;
  event.preventDefault();
  back = Math.min(Math.max(back + step, 0), asked.length);
  byId("prompt").value = back ? asked.at(-back) : "";
  keep();
}

function read(name, otherwise) {
  try {
    return JSON.parse(sessionStorage.getItem(name)) ?? otherwise;
  } catch {
    return otherwise;
  }
}

function write(name, value) {
  try {
    sessionStorage.setItem(name, JSON.stringify(value));
  } catch {
    // no room in the tab: nothing is kept
  }
}
