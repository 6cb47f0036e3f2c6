// All versions of one adapter; those who may change it set aliases and remove versions here.

import { pairs } from "./adapters.js";
import { byId, make, say } from "./element.js";
import { get, save, send } from "./server.js";
import { bytes, counted, moment, score } from "./words.js";

let name = "";
let mayChange = false;
let changed = () => {};

// onChange(): called where something was changed.
export function start(onChange) {
  changed = onChange;
  byId("details-close").addEventListener("click", () => byId("details").close());
  byId("remove-all").addEventListener("click", () =>
    remove(`all versions of ${name}`, `v1/adapters/${path(name)}?all_versions=true`));
  byId("alias-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const given = { name, alias: byId("alias-word").value.trim(), version: byId("alias-version").valueAsNumber || null };
    change(`Set ${given.alias}`, () => send("POST", "v1/aliases", given));
  });
}

export function allow(mayPublish) {
  mayChange = mayPublish;
  byId("alias-form").hidden = !mayChange;
}

export async function open(which) {
  name = which;
  say(byId("details-title"), name);
  say(byId("details-status"), "");
  byId("versions").replaceChildren();
  byId("details").showModal();
  await show("");
}

// A name as a part of an address.
export function path(name) {
  return name.split("/").map(encodeURIComponent).join("/");
}

async function show(news) {
  try {
    const { data } = await get(`v1/adapters/${path(name)}/versions`);
    byId("versions").replaceChildren(...data.map(row));
    byId("alias-version").value = data[0].version;
    say(byId("details-status"), [news, counted(data.length, "version")].filter(Boolean).join(" · "));
  } catch (error) {
    byId("versions").replaceChildren();
    say(byId("details-status"), news || error.message);
  }
}

function row(one) {
  const aliases = Object.entries(one.aliases).filter(([, version]) => version === one.version).map(([alias]) => alias);
  return make("tr", {},
    make("th", { scope: "row", textContent: `@${one.version}` }),
    make("td", { textContent: moment(one.created).join(" ") }),
    make("td", { className: "number", textContent: bytes(one.bytes) }),
    make("td", { textContent: pairs(one.scores ?? {}, score).join(", ") }),
    make("td", {}, ...aliases.map(alias)),
    make("td", { className: "choices" },
      button("Download", `Download ${one.id}`, () => download(one)),
      ...(mayChange ? [removal(one, aliases)] : [])));
}

function alias(word) {
  const shown = make("span", { className: "item", textContent: word });
  if (mayChange) {
    const label = `Remove the alias ${word}`;
    shown.append(" ", button("×", label, () => remove(`the alias ${word}`, `v1/aliases/${path(name)}@${word}`)));
  }
  return shown;
}

function removal(one, aliases) {
  const query = aliases.length ? "?with_aliases=true" : "";
  const what = aliases.length ? `${one.id} and its aliases ${aliases.join(", ")}` : one.id;
  return button("Remove", `Remove ${one.id}`, () => remove(what, `v1/adapters/${path(name)}@${one.version}${query}`));
}

function button(text, label, act) {
  const made = make("button", { type: "button", textContent: text, ariaLabel: label });
  made.addEventListener("click", act);
  return made;
}

async function download(one) {
  try {
    await save(`v1/adapters/${path(name)}@${one.version}/file`, `${name.replaceAll("/", ".")}@${one.version}.safetensors`);
  } catch (error) {
    say(byId("details-status"), error.message);
  }
}

function remove(what, address) {
  if (confirm(`Remove ${what}? This cannot be taken back.`)) change(`Removed ${what}`, () => send("DELETE", address));
}

async function change(news, act) {
  try {
    await act();
  } catch (error) {
    say(byId("details-status"), error.message);
    return;
  }
  await show(news);
  changed();
}
