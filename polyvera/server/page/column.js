// A column of the chat: one model, and its conversation.

import { byId, make, say } from "./element.js";
import { showCode } from "./request_code.js";
import { stream } from "./server.js";
import { Timing } from "./timing.js";
import { tag } from "./tag.js";
import { counted } from "./words.js";

const NO_TEMPLATE = /has no chat template/;
const CUT = { length: "cut at max tokens" };

export class Column {
  // title: of the column. picker: an <input> for the model's name, null for the base.
  constructor(title, picker) {
    this.title = title;
    this.picker = picker;
    this.turns = [];
    this.refused = ""; // why this key may not call it, where it may not
    this.element = byId("column").content.firstElementChild.cloneNode(true);
    this.log = this.element.querySelector(".log");
    say(this.element.querySelector(".column-title"), title);
    this.element.querySelector(".picker").append(picker ?? make("p", { className: "muted", id: "base-name" }));
    this.log.ariaLabel = `Answers of ${title}`;
    this.onCopy = () => {};
    for (const button of this.element.querySelectorAll("[data-copy]")) {
      button.ariaLabel = `The request to ${title} in ${button.dataset.copy}`;
      button.addEventListener("click", () => this.onCopy(button.dataset.copy));
    }
    this.clear();
  }

  get model() {
    return this.picker === null ? "base" : this.picker.querySelector("input").value.trim();
  }

  clear() {
    this.turns = [];
    this.log.replaceChildren(make("p", { className: "muted empty", textContent: "Answers appear here." }));
  }

  // One turn, streamed. given: {temperature, max_tokens}. isPlain(): whether without the chat template.
  // noTemplate(): called where the model has none; it is asked again in plain text. Throws what ended it.
  async ask(prompt, given, isPlain, noTemplate, signal) {
    const turn = { prompt, answer: "", isPlain: isPlain(), model: this.model, isKept: false };
    const shown = this.show(turn);
    this.turns.push(turn);
    this.log.ariaBusy = "true";
    try {
      if (this.refused) throw new Error(this.refused);
      if (!turn.model) throw new Error("Choose an adapter: write its name above, or press A or B in the table below.");
      await this.answered(turn, shown, given, noTemplate, signal);
    } catch (error) {
      this.failed(error, turn, shown);
      throw error;
    } finally {
      this.log.ariaBusy = "false";
    }
  }

  // The request with this prompt, or the last one where there is none, as code.
  copy(kind, prompt, given, isPlain) {
    const last = this.turns.at(-1);
    const turn = prompt.trim() || !last ? { prompt, isPlain, model: this.model } : last;
    showCode(kind, ...this.request(turn, given));
  }

  async answered(turn, shown, given, noTemplate, signal) {
    try {
      await this.streamed(turn, shown, given, signal);
    } catch (error) {
      if (turn.isPlain || !NO_TEMPLATE.test(error.message)) throw error;
      noTemplate();
      turn.isPlain = true;
      await this.streamed(turn, shown, given, signal);
    }
  }

  async streamed(turn, shown, given, signal) {
    const [path, body] = this.request(turn, given);
    turn.timing = new Timing();
    let finish = "";
    let usage = null;
    for await (const part of stream(path, body, signal)) {
      const choice = part.choices[0];
      usage = part.usage ?? usage;
      finish = choice?.finish_reason ?? finish;
      turn.answered = part.model;
      const text = (turn.isPlain ? choice?.text : choice?.delta?.content) ?? "";
      if (text) turn.timing.part();
      this.append(turn, shown, text);
    }
    turn.isKept = true;
    const tokens = usage?.completion_tokens;
    const facts = [usage ? counted(tokens, "token") : "", ...turn.timing.words(tokens), CUT[finish] ?? ""];
    this.note(shown, turn, facts);
  }

  request(turn, given) {
    const body = { model: turn.model, stream: true, stream_options: { include_usage: true }, ...given };
    if (turn.isPlain) return ["v1/completions", { ...body, prompt: turn.prompt }];
    return ["v1/chat/completions", { ...body, messages: this.messages(turn) }];
  }

  // What was said in this column before, to the same template, and the prompt.
  messages(turn) {
    const until = this.turns.includes(turn) ? this.turns.indexOf(turn) : this.turns.length;
    const earlier = this.turns.slice(0, until).filter((one) => one.isKept && !one.isPlain);
    const said = earlier.flatMap((one) => [user(one.prompt), { role: "assistant", content: one.answer }]);
    return [...said, user(turn.prompt)];
  }

  show(turn) {
    this.log.querySelector(".empty")?.remove();
    const shown = { text: document.createTextNode(""), note: make("p", { className: "note muted" }) };
    const answer = make("p", { className: "answer", dir: "auto" }, shown.text);
    const prompt = make("p", { className: "said", dir: "auto", textContent: turn.prompt });
    this.log.append(make("div", { className: "turn" }, prompt, answer, shown.note));
    this.log.scrollTop = this.log.scrollHeight;
    return shown;
  }

  append(turn, shown, text) {
    const isAtEnd = this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 24;
    turn.answer += text;
    shown.text.appendData(text);
    if (isAtEnd) this.log.scrollTop = this.log.scrollHeight;
  }

  failed(error, turn, shown) {
    if (error.name === "AbortError") {
      turn.isKept = turn.answer !== "";
      this.note(shown, turn, ["stopped", ...(turn.timing?.words() ?? [])]);
      return;
    }
    if (error.status === 403) this.refused = error.message;
    shown.note.classList.add("error");
    this.note(shown, turn, [error.message]);
  }

  note(shown, turn, facts) {
    const words = [turn.answered ?? "", ...facts, turn.isKept && !turn.answer ? "an empty answer" : ""];
    const text = words.filter(Boolean).join(" · ");
    shown.note.replaceChildren(...(turn.answered ? [mark(turn.answered)] : []), text);
    this.log.scrollTop = this.log.scrollHeight;
  }
}

function user(content) {
  return { role: "user", content };
}

function mark(name) {
  const made = tag(name);
  made.ariaHidden = "true";
  return made;
}
