// The server that gave this page: whether it can serve, what it has, and how it is asked.
// Keys live in this module's memory and nowhere else.
import { Store } from "./html.js";

const WAITING_MS = 1000;
const READY_MS = 5000;

/**
 * What a server may have beside its screens.
 *
 * progress: `stream_options.include_progress`. reports: `return_cache_report`.
 * tokens: `return_token_ids`, and /detokenize to read them.
 * code: /v1/containers, in which code runs.
 * accounts: two kinds of keys, and the bill of each answer; requests name a model.
 */
export const FEATURES = ["progress", "reports", "tokens", "code", "accounts"];

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
  /** Another number after each change of the keys. */
  keyVersion = 0;
  #key = "";
  #managementKey = "";

  has(feature) {
    return this.about?.features.includes(feature) ?? false;
  }

  /** Whether there is a key for requests to models. */
  get hasKey() {
    return this.#key !== "";
  }

  /** Whether there is one that manages others. */
  get hasManagementKey() {
    return this.#managementKey !== "";
  }

  /** Whether requests to models can be made. */
  get isOpen() {
    return this.about !== null && (!this.about.needs_key || this.hasKey) && !this.keyTrouble;
  }

  /** Whether what is only looked at can be asked for: either kind of key will do. */
  get isReadable() {
    return this.isOpen || (this.hasManagementKey && !this.keyTrouble);
  }

  /** Keep a key; one of a gateway may be of either kind, and both can be had at once. */
  async useKey(given) {
    const key = given.trim();
    this.keyTrouble = "";
    let isManagement = false;
    if (this.has("accounts")) {
      try {
        const response = await this.ask("/api/v1/key", { key });
        isManagement = (await response.json()).data.is_management_key;
      } catch (error) {
        this.keyTrouble = error.message;
        this.changed();
        return;
      }
    }
    if (isManagement) this.#managementKey = key;
    else this.#key = key;
    this.keyVersion += 1;
    this.models = [];
    this.changed();
    this.#look();
  }

  forgetKeys() {
    this.#key = this.#managementKey = this.keyTrouble = "";
    this.keyVersion += 1;
    this.models = [];
    this.changed();
  }

  /**
   * Ask something; gives the Response if its status is good.
   *
   * manages: with the management key, if there is one.
   * key: with this one instead of those that are kept.
   */
  async ask(path, { method, json, headers = {}, signal, manages = false, key } = {}) {
    const own = (manages && this.#managementKey) || this.#key;
    const used = key ?? own;
    const sent = { ...headers };
    if (used) sent.authorization = `Bearer ${used}`;
    if (json !== undefined) sent["content-type"] = "application/json";
    let response;
    try {
      const body = json === undefined ? undefined : JSON.stringify(json);
      method ??= json === undefined ? "GET" : "POST";
      response = await fetch(path, { method, headers: sent, body, signal, cache: "no-store" });
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
      const body = await response.json();
      told = body.error ?? body; // E2B's errors have no envelope
    } catch {
      // Something between us and the server answered.
    }
    const message = told.message ?? `The server answered with status ${response.status}.`;
    if (response.status === 401) {
      const isGiven = this.hasKey || this.hasManagementKey;
      this.keyTrouble = isGiven ? message : "This server asks for an API key.";
      this.changed();
    }
    return new ServerError("http", message, { ...told, status: response.status });
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
    const wantsModels = this.about?.screens.includes("playground") && this.models.length === 0;
    if (wantsModels && this.isOpen && this.state !== "offline") {
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
