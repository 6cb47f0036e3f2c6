// The routes of the server, from its own description: method, path, parameters, and the fields of the body.

import { byId, make } from "./element.js";
import { get } from "./server.js";

const BOUNDS = {
  minimum: "from",
  exclusiveMinimum: "more than",
  maximum: "to",
  minLength: "characters from",
  maxLength: "characters to",
  maxItems: "at most",
  maxProperties: "at most",
  pattern: "like",
};

function named(schema, document) {
  return schema.$ref ? document.components.schemas[schema.$ref.split("/").pop()] : schema;
}

// What a value may be, in words.
function kind(schema, document) {
  const arms = schema.anyOf ?? schema.oneOf;
  if (arms) return [...new Set(arms.map((arm) => kind(arm, document)))].join(" or ");
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" or ");
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.$ref) return schema.$ref.split("/").pop();
  const inner = schema.items ? ` of ${kind(schema.items, document)}` : "";
  const bounds = Object.entries(BOUNDS).flatMap(([key, word]) => (key in schema ? [`${word} ${schema[key]}`] : []));
  return `${schema.type ?? "any"}${inner}${bounds.length ? ` (${bounds.join(", ")})` : ""}`;
}

function row(name, schema, isRequired, document) {
  const fallback = "default" in schema ? `, default ${JSON.stringify(schema.default)}` : "";
  const note = `${kind(schema, document)}${fallback}${isRequired ? ", required" : ""}`;
  return make("tr", {}, make("th", { scope: "row", textContent: name }), make("td", { textContent: note }));
}

function table(rows) {
  return make("div", { className: "scroll" }, make("table", {}, make("tbody", {}, ...rows)));
}

function fields(operation, document) {
  const parameters = operation.parameters ?? [];
  const rows = parameters.map((one) => row(`${one.name} (${one.in})`, one.schema, one.required, document));
  for (const [type, { schema }] of Object.entries(operation.requestBody?.content ?? {})) {
    const body = named(schema, document);
    const required = body.required ?? [];
    const own = Object.entries(body.properties ?? {});
    if (!own.length) rows.push(row("body", { type }, true, document));
    rows.push(...own.map(([name, one]) => row(name, one, required.includes(name), document)));
  }
  return rows;
}

function section(path, method, operation, document) {
  const summary = make("summary", { textContent: `${method.toUpperCase()} ${path}` });
  const details = make("details", {}, summary);
  // A table is made when it is wanted: all of them at once are a long document.
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) {
      const rows = fields(operation, document);
      const none = make("p", { className: "muted", textContent: "It takes nothing." });
      details.append(rows.length ? table(rows) : none);
    }
  });
  return details;
}

function shown(document) {
  const all = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, one]) => section(path, method, one, document)),
  );
  byId("routes").replaceChildren(...all);
  byId("filter").addEventListener("input", () => {
    const words = byId("filter").value.toLowerCase().split(/\s+/);
    for (const one of all) one.hidden = !words.every((word) => one.textContent.toLowerCase().includes(word));
  });
}

try {
  shown(await get("openapi.json"));
} catch (error) {
  byId("notice").hidden = false;
  byId("notice").textContent = `${error.message} Give the page a key first, in this tab.`;
}
