// The duel: every row of a file is asked of the base and two adapters, and their answers stand beside each other.

import { likeness, parse, winner } from "./duel_rows.js";
import { byId, make, say } from "./element.js";
import { offerFile, stream } from "./server.js";
import { milliseconds, Timing } from "./timing.js";
import { acceptDrop } from "./upload.js";
import { count, counted } from "./words.js";

const AT_ONCE = 4; // rows, each asked of three models
const PAGE = matchMedia("(max-width: 45rem)").matches ? 2 : 4;
const NAMES = { A: "Adapter A", B: "Adapter B", base: "Base" };
let rows = [];
let models = {};
let running = null;
let page = 0;

export function start() {
  acceptDrop(byId("duel"), byId("duel-file"), () => byId("duel-run").focus());
  byId("duel-file").addEventListener("change", read);
  byId("duel-form").addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  byId("duel-stop").addEventListener("click", () => running?.abort());
  byId("duel-save").addEventListener("click", saveAll);
  byId("duel-differ").addEventListener("change", () => turn(-page));
  byId("duel-before").addEventListener("click", () => turn(-1));
  byId("duel-after").addEventListener("click", () => turn(1));
}

// Fills what the reader has left empty.
export function suggest(names) {
  ["A", "B"].forEach((side, at) => {
    const field = byId(`duel-${side}`);
    if (!field.value && names.length) field.value = names[Math.min(at, names.length - 1)];
  });
}

// Two adapters for A and B; B stays as it is where there is none.
export function choose(A, B) {
  byId("duel-A").value = A;
  if (B) byId("duel-B").value = B;
  say(byId("duel-status"), B ? `${A} against ${B} and the base.` : `${A} against the base: name another one as B.`);
}

export function forget() {
  running?.abort();
  rows = [];
  byId("duel-form").reset();
  show();
  say(byId("duel-status"), "");
}

async function read() {
  const [file] = byId("duel-file").files;
  rows = [];
  try {
    if (file) rows = parse(await file.text()).map((row) => ({ ...row, answers: {}, vote: "" }));
    const judged = rows.filter((row) => row.right !== null).length;
    say(byId("duel-status"), file ? `${counted(rows.length, "row")}, ${count(judged)} with a right answer.` : "");
  } catch (error) {
    say(byId("duel-status"), error.message);
  }
  show();
}

async function run() {
  if (running) return say(byId("duel-status"), "It is running already.");
  if (!rows.length) return say(byId("duel-status"), "Choose a file first.");
  models = { A: byId("duel-A").value.trim(), B: byId("duel-B").value.trim(), base: "base" };
  if (!models.A || !models.B) return say(byId("duel-status"), "Name both adapters first.");
  for (const row of rows) Object.assign(row, { answers: {}, vote: "" });
  page = 0;
  running = new AbortController();
  busy(true);
  const left = [...rows];
  const { signal } = running;
  await Promise.all(Array.from({ length: AT_ONCE }, () => work(left, signal)));
  const isStopped = signal.aborted;
  running = null;
  busy(false);
  show();
  say(byId("duel-status"), isStopped ? `Stopped with ${counted(left.length, "row")} left.` : `${counted(rows.length, "row")} answered by all three.`);
}

async function work(left, signal) {
  while (left.length && !signal.aborted) {
    const row = left.shift();
    await Promise.all(Object.keys(models).map((side) => ask(row, side, signal)));
    say(byId("duel-status"), `${count(rows.length - left.length)} of ${counted(rows.length, "row")} …`);
    show();
  }
}

async function ask(row, side, signal) {
  const body = { model: models[side], messages: row.messages, max_tokens: byId("duel-tokens").valueAsNumber, temperature: 0, stream: true };
  const answer = { text: "", error: "", timing: new Timing() };
  try {
    for await (const part of stream("v1/chat/completions", body, signal)) {
      const text = part.choices[0]?.delta?.content ?? "";
      if (text) answer.timing.part();
      answer.text += text;
    }
  } catch (error) {
    answer.error = error.name === "AbortError" ? "stopped" : error.message;
  }
  row.answers[side] = answer;
}

function busy(isBusy) {
  byId("duel-run").ariaDisabled = String(isBusy);
  byId("duel-stop").ariaDisabled = String(!isBusy);
}

// --- what it shows ---

function turn(step) {
  page += step;
  show();
}

function show() {
  const done = rows.filter((row) => Object.keys(row.answers).length === 3);
  byId("duel-save").ariaDisabled = String(!done.length);
  byId("duel-score").hidden = byId("duel-list").hidden = !done.length;
  byId("duel-score").tBodies[0].replaceChildren(...Object.keys(NAMES).map((side) => total(side, done)));
  const shown = byId("duel-differ").checked ? done.filter(differs) : done;
  const last = Math.max(0, Math.ceil(shown.length / PAGE) - 1);
  page = Math.min(Math.max(page, 0), last);
  byId("duel-before").ariaDisabled = String(page === 0);
  byId("duel-after").ariaDisabled = String(page === last);
  say(byId("duel-place"), shown.length ? `${count(page + 1)} of ${count(last + 1)}` : "They never differ.");
  byId("duel-rows").replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(pair));
}

function differs(row) {
  return new Set(Object.values(row.answers).map((one) => one.error || one.text.trim())).size > 1;
}

function likenesses(row) {
  const sides = Object.entries(row.answers);
  return Object.fromEntries(sides.map(([side, one]) => [side, one.error ? null : likeness(one.text, row.right)]));
}

function won(row) {
  return row.right === null ? row.vote : winner(likenesses(row));
}

function total(side, done) {
  const judged = done.filter((row) => row.right !== null).map((row) => likenesses(row)[side]).filter((value) => value !== null);
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const firsts = done.map((row) => row.answers[side].timing.firstMs).filter((value) => value !== null);
  const numbers = [
    count(done.filter((row) => won(row) === side).length),
    count(judged.filter((value) => value === 1).length),
    judged.length ? mean(judged).toFixed(2) : "",
    firsts.length ? milliseconds(mean(firsts)) : "",
    count(done.filter((row) => row.answers[side].error).length),
  ];
  return make("tr", {}, make("th", { scope: "row", textContent: `${NAMES[side]}: ${models[side] ?? ""}` }),
    ...numbers.map((textContent) => make("td", { className: "number", textContent })));
}

function pair(row) {
  const asked = row.messages.at(-1).content;
  const right = row.right === null ? [] : [make("p", { className: "hint" }, make("strong", { textContent: "Right: " }), row.right)];
  return make("article", { className: "duel-row" },
    make("p", { className: "said", dir: "auto", textContent: asked }), ...right,
    make("div", { className: "columns" }, ...Object.keys(NAMES).map((side) => answer(row, side))));
}

function answer(row, side) {
  const { text, error, timing } = row.answers[side];
  const isBest = won(row) === side;
  const head = make("p", { className: "hint muted", textContent: [NAMES[side], isBest ? "won" : "", ...timing.words()].filter(Boolean).join(" · ") });
  const body = make("p", { className: error ? "answer error" : "answer", dir: "auto", textContent: error || text || "an empty answer" });
  const made = make("div", { className: isBest ? "column best" : "column" }, head, body);
  if (row.right === null && !error) made.append(voter(row, side));
  return made;
}

function voter(row, side) {
  const button = make("button", { type: "button", textContent: "Best", ariaLabel: `${NAMES[side]} is best here` });
  button.setAttribute("aria-pressed", String(row.vote === side));
  button.addEventListener("click", () => {
    row.vote = row.vote === side ? "" : side;
    show();
  });
  return button;
}

function saveAll() {
  const told = (row) => ({ messages: row.messages, right: row.right, winner: won(row) || null,
    answers: Object.fromEntries(Object.entries(row.answers).map(([side, one]) => [models[side], one.error ? { error: one.error } : one.text])) });
  const done = rows.filter((row) => Object.keys(row.answers).length === 3);
  if (done.length) offerFile(new Blob(done.map((row) => `${JSON.stringify(told(row))}\n`)), "duel.jsonl");
}
