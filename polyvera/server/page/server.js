// Requests to the server that this page came from, with the key of this tab.

const KEY = "polyvera.key";
export const KEY_WANTED = "key-wanted";

// What went wrong, in the server's words. status: of HTTP, 0 where there was no answer.
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export function key() {
  return sessionStorage.getItem(KEY) ?? "";
}

// Throws Problem for a text that no header can carry.
export function setKey(text) {
  if (!/^[\x21-\x7e]*$/.test(text)) {
    throw new Problem("A key is made of letters, digits and signs without spaces: this one is not.");
  }
  if (text) sessionStorage.setItem(KEY, text);
  else sessionStorage.removeItem(KEY);
}

// The JSON of an answer. Throws Problem, or AbortError.
export async function get(path, signal) {
  const response = await asked(path, { signal });
  return response.json();
}

// The JSON that a request with a body is answered. body: an object, or a file or form as it is. Throws Problem, or
// AbortError.
export async function send(method, path, body, signal) {
  const isWhole = body instanceof Blob || body instanceof FormData;
  const headers = body === undefined || isWhole ? {} : { "Content-Type": "application/json" };
  const response = await asked(path, { method, headers, body: isWhole ? body : JSON.stringify(body), signal });
  return response.json();
}

// A file that only a key opens, saved under a name. Throws Problem.
export async function save(path, name) {
  const response = await asked(path, {});
  offerFile(await response.blob(), name);
}

// Lets the browser save a Blob.
export function offerFile(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = Object.assign(document.createElement("a"), { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

// The data of a streamed answer, part by part. Throws Problem, or AbortError.
export async function* stream(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await asked(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const part = JSON.parse(data);
    if (part.error) throw new Problem(part.error.message);
    yield part;
  }
  throw new Problem("The answer broke off: the connection to the server was lost.");
}

async function asked(path, { headers = {}, ...options }) {
  const sent = key() ? { ...headers, Authorization: `Bearer ${key()}` } : headers;
  let response;
  try {
    response = await fetch(path, { ...options, headers: sent, redirect: "error", cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem("The server does not answer.");
  }
  if (response.ok) return response;
  const problem = new Problem(await told(response), response.status);
  if (response.status === 401) document.dispatchEvent(new CustomEvent(KEY_WANTED, { detail: problem.message }));
  throw problem;
}

async function told(response) {
  try {
    return String((await response.json()).error.message);
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await read(reader);
    if (done) return;
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const event of whole) if (event.startsWith("data: ")) yield event.slice(6); // others are comments
  }
}

async function read(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Problem("The answer broke off: the connection was lost.");
  }
}
