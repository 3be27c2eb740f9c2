// What a screen reads from the server: now, and every so often while somebody looks.
import { Store } from "./html.js";

export class Reading extends Store {
  /** What was read last, and why there is nothing newer. */
  value = null;
  problem = "";
  #read;
  #everyMs;
  #timer = 0;
  #isWatched = false;
  #number = 0;

  /** everyMs: 0 reads when it is told to. */
  constructor(read, everyMs = 0) {
    super();
    this.#read = read;
    this.#everyMs = everyMs;
  }

  start() {
    this.#isWatched = true;
    this.again();
  }

  stop() {
    this.#isWatched = false;
    clearTimeout(this.#timer);
  }

  /** Read it anew; of several that overlap the last one counts. */
  async again() {
    clearTimeout(this.#timer);
    this.#number += 1;
    const number = this.#number;
    let value = this.value;
    let problem = "";
    try {
      value = await this.#read();
    } catch (error) {
      problem = error.message;
    }
    if (number !== this.#number) return;
    this.value = value;
    this.problem = problem;
    this.changed();
    if (this.#isWatched && this.#everyMs) {
      this.#timer = setTimeout(() => this.again(), this.#everyMs);
    }
  }

  forget() {
    this.#number += 1;
    this.value = null;
    this.problem = "";
    this.changed();
  }
}
