// A request as a command or a program that makes it.

import { byId, say } from "./element.js";

const ROUTES = {
  "v1/chat/completions": ["client.chat.completions", "message.content"],
  "v1/completions": ["client.completions", "text"],
};
const WRITERS = { curl, Python: python };

export function start() {
  byId("code-close").addEventListener("click", () => byId("code").close());
  byId("code-copy").addEventListener("click", copy);
}

// Shows a request as "curl" or "Python". body: what is sent, without what is for the page alone.
export function showCode(kind, path, { stream, stream_options, ...body }) {
  say(byId("code-title"), `The same request in ${kind}`);
  say(byId("code-text"), WRITERS[kind](new URL(path, document.baseURI).href, path, body));
  say(byId("code-status"), "");
  byId("code").showModal();
  byId("code-copy").focus();
}

function curl(url, path, body) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  return [
    `curl ${url} \\`,
    `  -H "Authorization: Bearer $POLYVERA_KEY" -H 'Content-Type: application/json' \\`,
    `  -d '${quoted}'`,
  ].join("\n");
}

function python(url, path, body) {
  const [call, answer] = ROUTES[path];
  const base = url.slice(0, url.length - path.length + "v1".length);
  return [
    "import os",
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(base)}, api_key=os.environ.get("POLYVERA_KEY", "none"))`,
    `answer = ${call}.create(`,
    ...Object.entries(body).map(([name, value]) => `    ${name}=${JSON.stringify(value)},`),
    ")",
    `print(answer.choices[0].${answer})`,
  ].join("\n");
}

async function copy() {
  try {
    await navigator.clipboard.writeText(byId("code-text").textContent);
    say(byId("code-status"), "Copied.");
  } catch {
    getSelection().selectAllChildren(byId("code-text"));
    say(byId("code-status"), "This browser does not let a page copy here: it is selected, press Ctrl+C.");
  }
}
