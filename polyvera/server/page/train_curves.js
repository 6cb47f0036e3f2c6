// The losses of all of a tenant's jobs and runs, asked about while somebody looks, and what can be done with each.

import { hue, picture } from "./chart.js";
import { byId, make, say } from "./element.js";
import { get, send } from "./server.js";
import { isShown, SHOWN } from "./views.js";
import { count } from "./words.js";

const EVERY_MS = { true: 1_500, false: 15_000 }; // whether anything trains
const ACTIVE = ["queued", "running", "paused"];
const KINDS = { job: ["Loss of jobs", "nats a token"], run: ["Loss of runs, call by call", "as their clients sum it"] };
const places = new Map(); // of each id, in the order in which they were seen: a line keeps its colour
let shown = "";
let timer;
let compare = () => {};

export function start(onCompare) {
  compare = onCompare;
  document.addEventListener(SHOWN, restart);
  document.addEventListener("visibilitychange", restart);
}

export function restart() {
  clearTimeout(timer);
  if (isShown("train") && !document.hidden) ask();
}

export function forget() {
  places.clear();
  show([]);
}

async function ask() {
  let lines = [];
  try {
    lines = (await get("v1/fine_tuning/curves")).data;
    show(lines);
  } catch (error) {
    say(byId("train-status"), error.message);
    if (error.status === 401) return; // until there is a key
  }
  clearTimeout(timer);
  const isBusy = lines.some((line) => ACTIVE.includes(line.status));
  if (isShown("train") && !document.hidden) timer = setTimeout(ask, EVERY_MS[isBusy]);
}

// Nothing is touched where nothing has changed: a button keeps the focus.
function show(lines) {
  if (JSON.stringify(lines) === shown) return;
  shown = JSON.stringify(lines);
  for (const { id } of lines.toReversed()) if (!places.has(id)) places.set(id, places.size);
  const drawn = (kind) => lines.filter((line) => line.kind === kind && line.points.length);
  byId("train-curves").replaceChildren(...Object.keys(KINDS).filter((kind) => drawn(kind).length)
    .map((kind) => figure(KINDS[kind], drawn(kind))));
  const former = document.activeElement?.ariaLabel;
  byId("train-lines").tBodies[0].replaceChildren(...lines.map((line) => row(line, lines)));
  byId("train-lines").hidden = !lines.length;
  if (former) byId("train-lines").querySelector(`[aria-label="${CSS.escape(former)}"]`)?.focus();
}

function figure([title, unit], lines) {
  const values = lines.flatMap((line) => line.points.map(([, loss]) => loss));
  const [least, most] = [Math.min(0, ...values), Math.max(...values)];
  const last = Math.max(...lines.map((line) => line.num_steps ?? line.step), 1);
  const place = ([step, loss]) => [step / last, (loss - least) / (most - least || 1)];
  const drawn = picture(`${title}: from ${short(least)} to ${short(most)}`, lines.map((line) => [line.points.map(place)]),
    lines.map(({ id }) => hue(places.get(id))));
  const head = make("figcaption", {}, make("span", { textContent: title }),
    make("span", { className: "muted", textContent: `at most ${short(most)} ${unit}` }));
  const foot = make("p", { className: "muted hint axis" },
    ...["step 0", count(Math.round(last / 2)), count(last)].map((textContent) => make("span", { textContent })));
  return make("figure", {}, head, drawn, foot);
}

function row(line, lines) {
  const mark = make("span", { className: "curve-mark", ariaHidden: "true" });
  mark.style.setProperty("--hue", hue(places.get(line.id)));
  const loss = line.points.at(-1)?.[1];
  const step = line.num_steps ? `${count(line.step)} of ${count(line.num_steps)}` : count(line.step);
  return make("tr", {},
    make("th", { scope: "row" }, mark, " ", line.name ?? line.models.at(-1) ?? shortened(line.id)),
    make("td", { textContent: line.status }),
    make("td", { className: "number", textContent: step }),
    make("td", { className: "number", textContent: loss === undefined ? "" : short(loss) }),
    make("td", { className: "choices" }, ...choices(line, lines)));
}

function choices(line, lines) {
  const name = line.name ?? shortened(line.id);
  const found = [];
  if (line.kind === "job" && ACTIVE.includes(line.status)) {
    found.push(button("Stop", `Stop ${name}`, () => move(line, "cancel")));
    const verb = line.status === "paused" ? "resume" : "pause";
    found.push(button(verb === "pause" ? "Pause" : "Resume", `${verb} ${name}`, () => move(line, verb)));
  }
  if (line.models.length) found.push(button("Duel", `Compare ${name}`, () => compare(line.models.at(-1), former(line, lines))));
  return found;
}

// The version before: of the job before of that name, or of the epoch before.
function former(line, lines) {
  const earlier = lines.slice(lines.indexOf(line) + 1).find((one) => one.name && one.name === line.name && one.models.length);
  return earlier?.models.at(-1) ?? line.models.at(-2) ?? "";
}

async function move(line, verb) {
  try {
    await send("POST", `v1/fine_tuning/jobs/${line.id}/${verb}`);
    say(byId("train-status"), "");
  } catch (error) {
    say(byId("train-status"), error.message);
  }
  restart();
}

function button(text, label, act) {
  const made = make("button", { type: "button", textContent: text, ariaLabel: label });
  made.addEventListener("click", act);
  return made;
}

function shortened(id) {
  return id.length > 24 ? `${id.slice(0, 16)}…${id.slice(-7)}` : id;
}

function short(value) {
  return String(Number(value.toPrecision(3)));
}
