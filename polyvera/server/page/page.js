// The page: its parts, and the key that they all need.

import * as adapters from "./adapters.js";
import * as chat from "./chat.js";
import * as curves from "./curves.js";
import * as details from "./details.js";
import * as duel from "./duel.js";
import { byId, say } from "./element.js";
import * as live from "./live.js";
import * as code from "./request_code.js";
import { get, key, KEY_WANTED, setKey } from "./server.js";
import * as train from "./train.js";
import * as texts from "./texts.js";
import * as upload from "./upload.js";
import * as usage from "./usage.js";
import * as views from "./views.js";
import { count } from "./words.js";

const WRITERS = ["chat", "duel", "train", "adapters", "activity", "usage"];
const READERS = ["texts", "adapters", "activity", "usage"];

function start() {
  adapters.start(chat.choose, details.open);
  details.start(adapters.show);
  upload.start(adapters.list);
  train.start((A, B) => {
    duel.choose(A, B);
    location.hash = "duel";
  });
  for (const part of [chat, code, curves, duel, live, texts, usage, views]) part.start();
  document.addEventListener(KEY_WANTED, (event) => wantKey(event.detail));
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    useKey(byId("key-input").value.trim());
  });
  byId("key-forget").addEventListener("click", () => useKey(""));
  load();
}

async function load() {
  for (const part of [live, curves, train, usage]) part.restart();
  const [names] = await Promise.all([adapters.list(), showViews()]);
  if (names) {
    byId("notice").hidden = true;
    chat.suggest(names);
    duel.suggest(names);
  }
}

// What the key may do beside asking; whether the server trains for it.
async function showRights() {
  let rights = { can_publish: false, max_epochs: null };
  try {
    rights = await get("v1/me");
  } catch {
    // the notice tells why
  }
  details.allow(rights.can_publish);
  upload.allow(rights.can_publish);
  train.allow(rights.max_epochs);
  return rights.can_train;
}

async function showViews() {
  const rights = showRights();
  try {
    const base = await get("v1/models/base");
    const isWriter = chat.showBase(base);
    const trains = await rights;
    views.offer(isWriter ? WRITERS.filter((view) => trains || view !== "train") : READERS);
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
  for (const part of [chat, duel, live, texts, train]) part.forget();
  load();
}

start();
