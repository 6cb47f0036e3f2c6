// An encoder's page: which texts are nearest to one, and the classes of each.

import { byId, make, say } from "./element.js";
import { send } from "./server.js";
import { counted } from "./words.js";

const MOST_TEXTS = 200;
const MOST_SHOWN = 25;
const MOST_CLASSES = 3;

export function start() {
  byId("texts-form").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  for (const id of ["texts-nearest", "texts-classes"]) byId(id).addEventListener("change", showKind);
  showKind();
}

export function forget() {
  byId("texts-form").reset();
  byId("texts-found").replaceChildren();
  say(byId("texts-status"), "");
  showKind();
}

function showKind() {
  byId("texts-query").hidden = byId("texts-query-label").hidden = byId("texts-classes").checked;
}

async function ask() {
  const lines = byId("texts-lines").value.split("\n").map((line) => line.trim()).filter(Boolean);
  const isClasses = byId("texts-classes").checked;
  const query = byId("texts-query").value.trim();
  if (!lines.length) return say(byId("texts-status"), "Write some texts first, one a line.");
  if (lines.length > MOST_TEXTS) return say(byId("texts-status"), `${lines.length} texts are more than the ${MOST_TEXTS} of this page.`);
  if (!isClasses && !query) return say(byId("texts-status"), "Write the text that they are compared with.");
  say(byId("texts-status"), "Asking …");
  try {
    const found = isClasses ? await classes(lines) : await nearest(query, lines);
    byId("texts-found").replaceChildren(...found.slice(0, MOST_SHOWN));
    const part = found.length > MOST_SHOWN ? `, of which ${MOST_SHOWN} are shown` : "";
    say(byId("texts-status"), counted(lines.length, "text") + part + (isClasses ? "." : ", the nearest first."));
  } catch (error) {
    byId("texts-found").replaceChildren();
    say(byId("texts-status"), error.message);
  }
}

async function nearest(query, lines) {
  const { data } = await send("POST", "v1/embeddings", { model: model(), input: [query, ...lines] });
  const [own, ...vectors] = data.map((one) => unit(one.embedding));
  const scored = lines.map((text, at) => [text, own.reduce((sum, value, i) => sum + value * vectors[at][i], 0)]);
  scored.sort(([, a], [, b]) => b - a);
  return scored.map(([text, cosine]) => entry(text, [["cosine", cosine]]));
}

async function classes(lines) {
  const { data, labels } = await send("POST", "v1/classify", { model: model(), input: lines });
  return data.map((one, at) => entry(lines[at], best(labels, one.probs)));
}

function best(labels, probs) {
  const named = labels.map((name, i) => [name, probs[i]]);
  return named.sort(([, a], [, b]) => b - a).slice(0, MOST_CLASSES);
}

function model() {
  return byId("texts-model").value.trim() || "base";
}

function unit(vector) {
  const length = Math.hypot(...vector) || 1;
  return vector.map((value) => value / length);
}

function entry(text, scores) {
  return make("li", {}, make("p", { dir: "auto", className: "text", textContent: text }), ...scores.map(bar));
}

function bar([name, value]) {
  const meter = make("meter", { min: 0, max: 1, value: Math.max(0, value), ariaHidden: "true" });
  return make("p", { className: "hint bar" }, make("span", { textContent: name }), meter, make("span", { textContent: value.toFixed(3) }));
}
