// The last hour as three curves a line: tokens a second, time to the first token, answers that wait.

import { hue, picture } from "./chart.js";
import { byId, make, say } from "./element.js";
import { get } from "./server.js";
import { milliseconds } from "./timing.js";
import { isShown, SHOWN } from "./views.js";
import { count } from "./words.js";

const EVERY_MS = 15_000;
const CHARTS = [
  ["tokens_per_s", "Answer tokens a second", (value) => count(Number(value.toPrecision(3)))],
  ["first_token_s", "Time to the first token", (value) => milliseconds(1_000 * value)],
  ["waiting", "Answers that wait for their first token", (value) => count(value)],
];
let timer;

export function start() {
  document.addEventListener(SHOWN, restart);
  document.addEventListener("visibilitychange", restart);
  byId("hour-by").addEventListener("change", restart);
}

export function restart() {
  clearTimeout(timer);
  if (isShown("activity") && !document.hidden) ask();
}

async function ask() {
  try {
    show(await get(`v1/history?group_by=${byId("hour-by").value}`));
    timer = setTimeout(restart, EVERY_MS);
  } catch (error) {
    byId("curves").replaceChildren();
    byId("curve-names").replaceChildren();
    say(byId("hour-status"), error.message);
  }
}

function show({ data: lines }) {
  say(byId("hour-status"), lines.length ? "" : "Nobody has asked anything in the last hour.");
  byId("curves").replaceChildren(...(lines.length ? CHARTS.map((chart) => figure(chart, lines)) : []));
  byId("curve-names").replaceChildren(...lines.map(legend));
}

function figure([key, title, word], lines) {
  const most = Math.max(...lines.flatMap((line) => line[key].map((value) => value ?? 0)));
  const drawn = picture(`${title}: at most ${word(most)} in the last hour`, lines.map((line) => runs(line[key], most || 1)),
    lines.map((line, at) => hue(at)));
  const head = make("figcaption", {}, make("span", { textContent: title }),
    make("span", { className: "muted", textContent: `at most ${word(most)}` }));
  const foot = make("p", { className: "muted hint axis" },
    ...["60 min ago", "30", "now"].map((textContent) => make("span", { textContent })));
  return make("figure", {}, head, drawn, foot);
}

// The runs of values that are there, as points from 0 to 1.
function runs(values, most) {
  const found = [];
  values.forEach((value, at) => {
    if (value === null) return;
    const point = [at / (values.length - 1), value / most];
    if (at && values[at - 1] !== null) found.at(-1).push(point);
    else found.push([point]);
  });
  return found;
}

function legend(line, at) {
  const mark = make("span", { className: "curve-mark", ariaHidden: "true" });
  mark.style.setProperty("--hue", hue(at));
  const tokens = line.tokens_per_s.reduce((sum, value) => sum + value, 0) * 30;
  const facts = make("span", { className: "muted", textContent: `${count(Math.round(tokens))} tokens` });
  return make("li", {}, mark, make("span", {}, make("span", { className: "name", textContent: line.name || "no tenant" }), " ", facts));
}
