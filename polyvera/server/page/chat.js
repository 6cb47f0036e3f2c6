// The chat: one prompt, the base and two adapters side by side.

import { named } from "./adapters.js";
import { Column } from "./column.js";
import * as draft from "./draft.js";
import { byId, make, say } from "./element.js";

const TYPING_MS = 200;
const columns = {};
let asking = null; // the AbortController of the answers that are coming
let keyNumber = 0; // of the key that is used

export function start() {
  columns.base = new Column("Base", null);
  for (const side of ["A", "B"]) columns[side] = new Column(`Adapter ${side}`, picker(side));
  byId("columns").append(...Object.values(columns).map((column) => column.element));
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  byId("prompt").addEventListener("keydown", sendOnEnter);
  byId("stop").addEventListener("click", stop);
  byId("clear").addEventListener("click", clear);
  byId("plain").addEventListener("change", showHint);
  for (const column of Object.values(columns)) {
    column.onCopy = (kind) => column.copy(kind, byId("prompt").value, given(), byId("plain").checked);
  }
  draft.start();
}

// An adapter for side "A" or "B".
export function choose(side, name) {
  input(side).value = name;
  draft.keep();
  for (const id of ["chat-status", "adapters-status"]) say(byId(id), `Adapter ${side} is now ${name}.`);
}

// Fills what the reader has left empty.
export function suggest(names) {
  for (const [at, side] of ["A", "B"].entries()) {
    if (!input(side).value && names.length) input(side).value = names[Math.min(at, names.length - 1)];
  }
}

// Another key may be allowed other things, and must not find what was said before with this one.
export function forget() {
  stop();
  keyNumber += 1;
  for (const column of Object.values(columns)) {
    column.refused = "";
    column.clear();
  }
  for (const side of ["A", "B"]) input(side).value = "";
  draft.forget();
  byId("names").replaceChildren();
  say(byId("chat-status"), "");
}

// The base's name; whether it is one to chat with.
export function showBase({ id, answers }) {
  const chats = answers.includes("/v1/chat/completions");
  say(byId("base-name"), id);
  byId("chat-open").hidden = !chats;
  byId("chat-closed").hidden = chats;
  say(byId("chat-closed"), chats ? "" : `There is nothing to chat with: ${id} is an encoder, which answers ${answers.join(" and ")}.`);
  return chats;
}

function picker(side) {
  const field = make("input", { id: `adapter-${side}`, type: "text", autocomplete: "off", spellcheck: false });
  field.setAttribute("list", "names");
  field.setAttribute("autocapitalize", "off");
  let timer;
  field.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => offer(field.value.trim()), TYPING_MS);
  });
  field.addEventListener("focus", () => offer(""));
  return make("label", { className: "muted" }, `Name of adapter ${side}`, field);
}

function input(side) {
  return columns[side].picker.querySelector("input");
}

async function offer(text) {
  try {
    const names = await named(text);
    byId("names").replaceChildren(...names.map((value) => make("option", { value })));
  } catch {
    byId("names").replaceChildren(); // the table tells why
  }
}

function sendOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId("ask").requestSubmit();
}

async function send() {
  const prompt = byId("prompt").value;
  if (asking) return say(byId("chat-status"), "Answers are still coming: stop them first.");
  if (!prompt.trim()) return say(byId("chat-status"), "Write a prompt first.");
  byId("prompt").value = "";
  draft.remember(prompt);
  const own = keyNumber;
  asking = new AbortController();
  showBusy(true);
  say(byId("chat-status"), "Answers are coming.");
  const ended = await Promise.allSettled(Object.values(columns).map((column) => asked(column, prompt)));
  asking = null;
  showBusy(false);
  if (own !== keyNumber) return;
  const problems = ended.map((one) => one.reason).filter(Boolean);
  if (problems.length === ended.length && !byId("prompt").value) byId("prompt").value = prompt;
  draft.keep();
  tell(problems);
}

function asked(column, prompt) {
  return column.ask(prompt, given(), () => byId("plain").checked, usePlain, asking.signal);
}

function given() {
  return { temperature: byId("temperature").valueAsNumber, max_tokens: byId("max-tokens").valueAsNumber };
}

function usePlain() {
  byId("plain").checked = true;
  showHint();
}

function tell(problems) {
  const isStopped = problems.some((error) => error.name === "AbortError");
  const failed = problems.filter((error) => error.name !== "AbortError").length;
  const ending = failed ? `${failed} of 3 did not answer; the columns say why.` : "All three have answered.";
  say(byId("chat-status"), isStopped ? "Stopped." : ending);
}

function stop() {
  if (asking) asking.abort();
  else say(byId("chat-status"), "There is nothing to stop.");
}

function clear() {
  if (asking) asking.abort();
  for (const column of Object.values(columns)) column.clear();
  say(byId("chat-status"), "Cleared.");
  byId("prompt").focus();
}

function showBusy(isBusy) {
  byId("send").ariaDisabled = String(isBusy);
  byId("stop").ariaDisabled = String(!isBusy);
}

function showHint() {
  byId("plain-hint").hidden = !byId("plain").checked;
}
