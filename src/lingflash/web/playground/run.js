// Code of a call, run in the sandbox of the server: one container for a conversation.
import { server } from "../lib/server.js";

const CONTAINERS = "/v1/containers";
const MINUTES = 20;

/** The Python of a call, or null if it is none: a custom tool's text, or the argument `code`. */
export function codeOf(call) {
  if (call.isCustom) return call.name === "python" ? call.args : null;
  try {
    const { code } = JSON.parse(call.args);
    return typeof code === "string" ? code : null;
  } catch {
    return null;
  }
}

export class CodeRunner {
  #container = "";

  /** What the code gave, as the model is to read it. Throws a ServerError. */
  async run(code, signal) {
    if (this.#container) {
      try {
        return await this.#ask(code, signal);
      } catch (error) {
        if (error.status !== 404) throw error; // it was not used for long and has ended
      }
    }
    const json = { name: "playground", expires_after: { anchor: "last_active_at", minutes: MINUTES } };
    this.#container = (await (await server.ask(CONTAINERS, { json })).json()).id;
    return this.#ask(code, signal);
  }

  async #ask(code, signal) {
    const path = `${CONTAINERS}/${this.#container}/run`;
    return (await (await server.ask(path, { json: { code }, signal })).json()).text;
  }

  /** End the container; if that fails, it ends by itself. */
  forget() {
    if (!this.#container) return;
    server.ask(`${CONTAINERS}/${this.#container}`, { method: "DELETE" }).catch(() => {});
    this.#container = "";
  }
}
