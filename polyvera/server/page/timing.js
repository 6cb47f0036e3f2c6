// How fast an answer came, as this browser saw it.

export class Timing {
  constructor() {
    this.begun = performance.now();
    this.first = null;
    this.last = null;
    this.parts = 0;
  }

  // A part of the answer has come.
  part() {
    this.last = performance.now();
    this.first ??= this.last;
    this.parts += 1;
  }

  get firstMs() {
    return this.first === null ? null : this.first - this.begun;
  }

  // tokens: of the answer; by default its parts, which are about as many.
  words(tokens = this.parts) {
    if (this.first === null) return [];
    const seconds = (this.last - this.first) / 1_000;
    const speed = tokens > 1 && seconds > 0 ? `${Math.round((tokens - 1) / seconds)} tokens/s` : "";
    return [speed, `first after ${milliseconds(this.firstMs)}`].filter(Boolean);
  }
}

export function milliseconds(ms) {
  return ms < 1_000 ? `${Math.round(ms)} ms` : `${(ms / 1_000).toPrecision(3)} s`;
}
