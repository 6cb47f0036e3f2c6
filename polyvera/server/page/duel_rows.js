// The rows of a duel: what a file asks, and how near an answer comes to the right one.

const PROMPTS = ["prompt", "question", "input", "instruction", "text"];
const ANSWERS = ["answer", "completion", "output", "response", "expected", "label"];
export const MOST_ROWS = 500;

// The rows of a JSONL text: {messages, right}, right is null where there is no right answer. Throws Error.
export function parse(text) {
  const lines = text.split("\n").map((line, at) => [line.trim(), at + 1]).filter(([line]) => line);
  if (!lines.length) throw new Error("The file has no lines.");
  if (lines.length > MOST_ROWS) throw new Error(`The file has ${lines.length} lines; at most ${MOST_ROWS} are asked.`);
  return lines.map(([line, at]) => row(line, at));
}

function row(line, at) {
  let given;
  try {
    given = JSON.parse(line);
  } catch {
    throw new Error(`Line ${at} is not JSON.`);
  }
  if (Array.isArray(given?.messages)) return conversation(given, at);
  const prompt = PROMPTS.map((key) => given?.[key]).find((value) => typeof value === "string" && value);
  if (!prompt) throw new Error(`Line ${at} has none of: messages, ${PROMPTS.join(", ")}.`);
  return { messages: [{ role: "user", content: prompt }], right: right(given) };
}

// What a model said last is the right answer.
function conversation(given, at) {
  const messages = given.messages.map(({ role, content }) => ({ role, content }));
  const last = messages.at(-1);
  const isAnswered = last?.role === "assistant";
  const asked = isAnswered ? messages.slice(0, -1) : messages;
  if (!asked.length) throw new Error(`Line ${at} asks nothing.`);
  return { messages: asked, right: isAnswered ? last.content : right(given) };
}

function right(given) {
  const found = ANSWERS.map((key) => given[key]).find((value) => ["string", "number", "boolean"].includes(typeof value));
  return found === undefined ? null : String(found);
}

// 1 for the same text but for case and space, else the F1 of their words, below 1.
export function likeness(answer, right) {
  const [a, b] = [words(answer), words(right)];
  if (a.join(" ") === b.join(" ")) return 1;
  const left = new Map();
  for (const word of b) left.set(word, (left.get(word) ?? 0) + 1);
  let common = 0;
  for (const word of a) {
    if (left.get(word) > 0) {
      common += 1;
      left.set(word, left.get(word) - 1);
    }
  }
  return Math.min(0.99, (2 * common) / Math.max(1, a.length + b.length));
}

function words(text) {
  return text.toLowerCase().split(/\s+/).filter(Boolean);
}

// Whose answer is nearest to the right one, "" where several are or nobody answered. likenesses: by model, null where it failed.
export function winner(likenesses) {
  const known = Object.entries(likenesses).filter(([, value]) => value !== null).sort(([, a], [, b]) => b - a);
  if (!known.length || (known.length > 1 && known[0][1] === known[1][1])) return "";
  return known[0][1] > 0 ? known[0][0] : "";
}
