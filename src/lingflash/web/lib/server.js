// The server that gave this page: whether it can serve, what it has, and how it is asked.
// The key lives in this module's memory and nowhere else.
import { Store } from "./html.js";

const WAITING_MS = 1000;
const READY_MS = 5000;

/** A request that gave no answer; `kind` is "offline" or "http". */
export class ServerError extends Error {
  constructor(kind, message, fields = {}) {
    super(message);
    this.kind = kind;
    this.status = fields.status ?? 0;
    this.code = fields.code ?? "";
    this.param = fields.param ?? "";
  }
}

const OFFLINE = "The server cannot be reached. It may have been stopped, or the network is gone.";

class Server extends Store {
  about = null;
  models = [];
  /** "connecting", "loading", "ready" or "offline"; `reason` says more. */
  state = "connecting";
  reason = "";
  /** What the server said about the key, if it refused one. */
  keyTrouble = "";
  #key = "";

  get hasKey() {
    return this.#key !== "";
  }

  /** Whether requests that take a key can be made. */
  get isOpen() {
    return this.about !== null && (!this.about.needs_key || this.hasKey) && !this.keyTrouble;
  }

  useKey(key) {
    this.#key = key.trim();
    this.keyTrouble = "";
    this.models = [];
    this.changed();
    this.#look();
  }

  /** Ask something; gives the Response if its status is good. */
  async ask(path, { json, signal } = {}) {
    const headers = {};
    if (this.#key) headers.authorization = `Bearer ${this.#key}`;
    if (json !== undefined) headers["content-type"] = "application/json";
    let response;
    try {
      const method = json === undefined ? "GET" : "POST";
      const body = json === undefined ? undefined : JSON.stringify(json);
      response = await fetch(path, { method, headers, body, signal, cache: "no-store" });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError("offline", OFFLINE);
    }
    if (response.ok) return response;
    throw await this.#refusal(response);
  }

  async #refusal(response) {
    let told = {};
    try {
      told = (await response.json()).error ?? {};
    } catch {
      // Something between us and the server answered.
    }
    const message = told.message ?? `The server answered with status ${response.status}.`;
    if (response.status === 401) {
      this.keyTrouble = this.hasKey ? message : "This server asks for an API key.";
      this.changed();
    }
    return new ServerError("http", message, { status: response.status, ...told });
  }

  /** Begin to look after the server, for as long as the page is there. */
  async follow() {
    for (;;) {
      await this.#look();
      const ms = this.state === "ready" ? READY_MS : WAITING_MS;
      await new Promise((resolve) => setTimeout(resolve, ms));
    }
  }

  async #look() {
    const before = [this.state, this.reason, this.models.length];
    try {
      this.about ??= await (await fetch("/ui/server.json", { cache: "no-store" })).json();
      const response = await fetch("/ready", { cache: "no-store" });
      const told = await response.json();
      this.state = response.ok ? "ready" : "loading";
      this.reason = told.reason ?? "";
    } catch {
      this.state = "offline";
      this.reason = OFFLINE;
    }
    if (this.isOpen && this.models.length === 0 && this.state !== "offline") {
      try {
        this.models = (await (await this.ask("/v1/models")).json()).data;
      } catch {
        // What is wrong is known by now: the key, or the connection.
      }
    }
    const after = [this.state, this.reason, this.models.length];
    if (after.some((value, i) => value !== before[i])) this.changed();
  }
}

export const server = new Server();
