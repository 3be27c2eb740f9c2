// One answer of the model while it comes, and what was measured of it.
import { Store } from "../lib/html.js";
import { events } from "../lib/sse.js";
import { server, ServerError } from "../lib/server.js";
import { askedWithReports } from "./request.js";

// Drawing more often than this costs time and nobody sees it.
const DRAW_MS = 60;
const BILL_MS = 300;
const BILL_TRIES = 5;
const BROKEN_OFF =
  "The connection was lost before the answer was complete. What came so far is above.";

let lastNumber = 0;

/** Tells messages apart, whatever they say. */
export function nextNumber() {
  lastNumber += 1;
  return lastNumber;
}

export class Answer extends Store {
  role = "assistant";
  number = nextNumber();
  text = "";
  reasoning = "";
  calls = [];
  /** "waiting", "reading", "writing", "done", "stopped" or "failed". */
  state = "waiting";
  error = null;
  progress = null;
  usage = null;
  /** What it cost, of a server with accounts: the row of /api/v1/generation. */
  bill = null;
  finishReason = "";
  promptIds = null;
  numTokens = 0;
  startedAt = 0;
  firstAt = 0;
  lastAt = 0;
  /** Whether the text is data that Markdown would spoil. */
  isData = false;
  /** Whether the server says which tokens came; else pieces are counted until it says how many. */
  #countsTokens = false;
  #billId = "";
  #stopper = new AbortController();
  #timer = 0;

  get isDone() {
    return ["done", "stopped", "failed"].includes(this.state);
  }

  get timeToFirstToken() {
    return this.firstAt ? (this.firstAt - this.startedAt) / 1e3 : null;
  }

  /** Tokens a second, of those after the first. */
  get tokensPerSecond() {
    const seconds = (this.lastAt - this.firstAt) / 1e3;
    return this.numTokens > 1 && seconds > 0 ? (this.numTokens - 1) / seconds : null;
  }

  get unanswered() {
    return this.state === "done" ? this.calls.filter((call) => call.result === null) : [];
  }

  /** As it goes back to the server. */
  message() {
    const message = { role: "assistant", content: this.text || null };
    if (this.calls.length) {
      message.tool_calls = this.calls.map(({ id, name, args, isCustom }) =>
        isCustom
          ? { id, type: "custom", custom: { name, input: args } }
          : { id, type: "function", function: { name, arguments: args } },
      );
    } else if (message.content === null) {
      message.content = "";
    }
    return message;
  }

  stop() {
    if (!this.isDone) this.#stopper.abort();
  }

  /** session: what a server with accounts is to call the conversation. */
  async run(body, session) {
    this.startedAt = performance.now();
    this.isData = Boolean(body.response_format || body.structured_outputs);
    try {
      const response = await server.ask("/v1/chat/completions", {
        json: askedWithReports(body),
        headers: server.has("accounts") ? { "x-session-id": session } : {},
        signal: this.#stopper.signal,
      });
      this.#billId = response.headers.get("x-generation-id") ?? "";
      this.state = "reading";
      this.#soon();
      await this.#read(response.body);
    } catch (error) {
      this.#fail(error);
    }
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (this.usage && !this.#countsTokens) this.numTokens = this.usage.completion_tokens;
    this.changed();
    if (this.#billId) this.#readBill();
  }

  /** One that was stopped is billed a moment later. */
  async #readBill() {
    for (let i = 0; i < BILL_TRIES && !this.bill; i += 1) {
      try {
        const response = await server.ask(`/api/v1/generation?id=${this.#billId}`);
        this.bill = (await response.json()).data;
      } catch (error) {
        if (error.status !== 404) return;
        await new Promise((resolve) => setTimeout(resolve, BILL_MS));
      }
    }
    this.changed();
  }

  async #read(body) {
    for await (const event of events(body)) {
      if (event.comment !== undefined) this.#takeComment(event.comment);
      else if (event.data === "[DONE]") this.state = "done";
      else this.#take(JSON.parse(event.data));
      this.#soon();
    }
    if (this.state !== "done") throw new ServerError("offline", BROKEN_OFF);
  }

  #fail(error) {
    if (error.name === "AbortError" || this.#stopper.signal.aborted) {
      this.state = "stopped";
      return;
    }
    this.state = "failed";
    const isKnown = error instanceof ServerError;
    this.error = isKnown ? error : new ServerError("offline", BROKEN_OFF);
  }

  #soon() {
    this.#timer ||= setTimeout(() => {
      this.#timer = 0;
      this.changed();
    }, DRAW_MS);
  }

  #takeComment(comment) {
    const [, told] = /^prompt_progress (.*)$/.exec(comment) ?? [];
    if (told) this.progress = JSON.parse(told);
  }

  #take(chunk) {
    if (chunk.error) {
      throw new ServerError("http", chunk.error.message, { status: 200, ...chunk.error });
    }
    if (chunk.usage) this.usage = chunk.usage;
    if (chunk.prompt_token_ids) this.promptIds = chunk.prompt_token_ids;
    const choice = chunk.choices[0];
    if (!choice) return;
    const { delta } = choice;
    this.#countsTokens ||= Boolean(choice.token_ids);
    const hasSome = delta.content || delta.reasoning || delta.tool_calls?.length;
    const tokens = choice.token_ids?.length ?? (hasSome ? 1 : 0);
    if (tokens) {
      this.lastAt = performance.now();
      this.firstAt ||= this.lastAt;
      this.numTokens += tokens;
      this.state = "writing";
    }
    if (delta.content) this.text += delta.content;
    if (delta.reasoning) this.reasoning += delta.reasoning;
    for (const part of delta.tool_calls ?? []) this.#takeCall(part);
    if (choice.finish_reason) this.finishReason = choice.finish_reason;
  }

  #takeCall(part) {
    const isCustom = part.type === "custom" || Boolean(part.custom);
    this.calls[part.index] ??= { id: part.id, name: "", args: "", isCustom, result: null };
    const call = this.calls[part.index];
    const said = part.function ?? part.custom ?? {};
    call.name += said.name ?? "";
    call.args += said.arguments ?? said.input ?? "";
  }
}

/** An answer that was read from a file. */
export function restoredAnswer(message) {
  const answer = new Answer();
  answer.text = message.content ?? "";
  answer.calls = (message.tool_calls ?? []).map((call) => ({
    id: call.id,
    name: (call.function ?? call.custom).name,
    args: call.function?.arguments ?? call.custom.input,
    isCustom: call.type === "custom",
    result: null,
  }));
  answer.state = "done";
  return answer;
}
