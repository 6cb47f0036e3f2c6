// Publishing: a file that is dropped or chosen becomes the next version of a name.

import { path } from "./details.js";
import { byId, say } from "./element.js";
import { send } from "./server.js";

let published = () => {};

// onPublish(): called where a version was published.
export function start(onPublish) {
  published = onPublish;
  acceptDrop(byId("upload"), byId("upload-file"), () => byId("upload-name").focus());
  byId("upload").addEventListener("submit", (event) => {
    event.preventDefault();
    publish();
  });
}

export function allow(mayPublish) {
  byId("upload").hidden = !mayPublish;
}

// Lets files be dropped on an element, as if they were chosen in a field. then(): called after.
export function acceptDrop(element, field, then) {
  element.addEventListener("dragover", (event) => {
    event.preventDefault();
    element.classList.add("over");
  });
  element.addEventListener("dragleave", () => element.classList.remove("over"));
  element.addEventListener("drop", (event) => {
    event.preventDefault();
    element.classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    field.files = event.dataTransfer.files;
    field.dispatchEvent(new Event("change"));
    then();
  });
}

async function publish() {
  const [file] = byId("upload-file").files;
  const name = byId("upload-name").value.trim();
  const alias = byId("upload-alias").value.trim();
  if (!file) return say(byId("adapters-status"), "Choose a file first.");
  if (!name) return say(byId("adapters-status"), "Write a name for it first, such as team/task.");
  say(byId("adapters-status"), `Publishing ${file.name} as ${name} …`);
  try {
    const query = alias ? `?${new URLSearchParams({ alias })}` : "";
    const { id } = await send("PUT", `v1/adapters/${path(name)}${query}`, file);
    byId("upload").reset();
    await published();
    say(byId("adapters-status"), `Published as ${id}.`);
  } catch (error) {
    say(byId("adapters-status"), error.message);
  }
}
