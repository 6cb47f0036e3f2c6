// The page: its parts, and the key that they all need.

import * as adapters from "./adapters.js";
import * as chat from "./chat.js";
import { byId, say } from "./element.js";
import * as live from "./live.js";
import { get, key, KEY_WANTED, setKey } from "./server.js";
import { count } from "./words.js";

function start() {
  adapters.start(chat.choose);
  chat.start();
  live.start();
  document.addEventListener(KEY_WANTED, (event) => wantKey(event.detail));
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key-input").value.trim());
  });
  byId("key-forget").addEventListener("click", () => useKey(""));
  load();
}

async function load() {
  live.restart();
  const [names] = await Promise.all([adapters.list(), showModel()]);
  if (names) {
    byId("notice").hidden = true;
    chat.suggest(names);
  }
}

async function showModel() {
  try {
    const base = await get("v1/models/base");
    chat.showBase(base);
    say(byId("served"), `${base.id}, ${count(base.max_model_len)} tokens of context`);
  } catch (error) {
    say(byId("served"), error.status === 401 ? "" : error.message);
  }
}

function wantKey(message) {
  const notice = byId("notice");
  notice.hidden = false;
  say(notice, key() ? `The server refused the key: ${message}.` : "This server needs an API key.");
  const isNew = !byId("key").open;
  byId("key").open = true;
  if (isNew && document.activeElement === document.body) byId("key-input").focus();
}

function useKey(text) {
  try {
    setKey(text);
  } catch (error) {
    byId("notice").hidden = false;
    say(byId("notice"), error.message);
    return;
  }
  byId("key-input").value = "";
  byId("notice").hidden = true;
  if (text) byId("key").open = false;
  chat.forget();
  live.forget();
  load();
}

start();
