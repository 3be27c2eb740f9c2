// The conversations of the playground. They are in memory alone; a file keeps them, if asked for.
import { Store } from "../lib/html.js";
import { Answer, nextNumber, restoredAnswer } from "./answer.js";
import { bodyOf, fieldOf, FRESH, problemsOf } from "./request.js";
import { CodeRunner } from "./run.js";

const FILE_KIND = "lingflash-conversation";

/** What accounts call a conversation: its own session, whatever others begin with. */
function newName() {
  const parts = crypto.getRandomValues(new Uint32Array(2));
  return `playground-${[...parts].map((each) => each.toString(36)).join("")}`;
}

/** One conversation and its settings. */
export class Pane extends Store {
  name = newName();
  settings = { ...FRESH };
  messages = [];
  /** What the server said about a field of the settings. */
  refused = {};
  /** Where this conversation's code runs; made when it first does. */
  runner = new CodeRunner();

  set(name, value) {
    this.settings = { ...this.settings, [name]: value };
    this.refused = {};
    this.changed();
  }

  get problems() {
    const problems = problemsOf(this.settings);
    for (const [name, said] of Object.entries(this.refused)) {
      problems[name] = [...(problems[name] ?? []), said];
    }
    return problems;
  }

  get last() {
    return this.messages.at(-1) ?? null;
  }

  get isBusy() {
    return this.last?.role === "assistant" && !this.last.isDone;
  }

  get unanswered() {
    return this.last?.role === "assistant" ? this.last.unanswered : [];
  }

  wireMessages(messages = this.messages) {
    const wire = [];
    for (const message of messages) {
      if (message.role === "user") {
        wire.push({ role: "user", content: message.content });
      } else if (message.state !== "failed") {
        wire.push(message.message());
        for (const call of message.calls) {
          if (call.result !== null) {
            wire.push({ role: "tool", tool_call_id: call.id, content: call.result });
          }
        }
      }
    }
    return wire;
  }

  body() {
    return bodyOf(this.settings, this.wireMessages());
  }

  /** The body that asked for the newest answer, or would ask for the first. */
  lastBody(draft) {
    const answered = this.last?.role === "assistant" && !this.last.calls.some((c) => c.result !== null);
    const asked = this.wireMessages(answered ? this.messages.slice(0, -1) : this.messages);
    const content = draft.trim() || "Hello!";
    return bodyOf(this.settings, asked.length ? asked : [{ role: "user", content }]);
  }

  /** Add a message and ask for its answer. */
  say(content) {
    this.messages = [...this.messages, { role: "user", content, number: nextNumber() }];
    this.ask();
  }

  async ask() {
    const answer = new Answer();
    const body = this.body();
    this.messages = [...this.messages, answer];
    this.changed();
    await answer.run(body, this.name);
    const field = answer.error ? fieldOf(answer.error.param) : "";
    if (field) this.refused = { [field]: answer.error.message };
    this.changed();
  }

  /** Forget an answer and what came after it, and ask again. */
  retry(answer) {
    this.stop();
    this.messages = this.messages.slice(0, this.messages.indexOf(answer));
    this.ask();
  }

  /** Take a message and all after it back; gives its text. */
  takeBack(message) {
    this.stop();
    this.messages = this.messages.slice(0, this.messages.indexOf(message));
    this.changed();
    return message.content;
  }

  giveResult(call, result) {
    call.result = result;
    this.changed();
    if (this.unanswered.length === 0) this.ask();
  }

  stop() {
    if (this.isBusy) this.last.stop();
  }

  clear() {
    this.stop();
    this.#renew();
    this.messages = [];
    this.changed();
  }

  /** Another conversation begins: another session, another container. */
  #renew() {
    this.name = newName();
    this.runner.forget();
    this.runner = new CodeRunner();
  }

  asFile() {
    return { settings: this.settings, messages: this.wireMessages() };
  }

  /** Take in what a file holds; it was checked. */
  load({ settings, messages }) {
    this.stop();
    this.#renew();
    this.settings = { ...FRESH, ...settings };
    const byId = new Map();
    this.messages = [];
    for (const message of messages) {
      if (message.role === "tool") {
        const call = byId.get(message.tool_call_id);
        if (call) call.result = message.content;
        continue;
      }
      const isAnswer = message.role === "assistant";
      this.messages.push(isAnswer ? restoredAnswer(message) : { ...message, number: nextNumber() });
      if (isAnswer) for (const call of this.last.calls) byId.set(call.id, call);
    }
    this.changed();
  }
}

/** All panes: one, or two side by side. */
export class Session extends Store {
  panes = [new Pane()];

  compare(isOn) {
    if (isOn && this.panes.length === 1) {
      const other = new Pane();
      other.load(this.panes[0].asFile());
      this.panes = [this.panes[0], other];
    } else if (!isOn) {
      this.panes.slice(1).forEach((pane) => pane.stop());
      this.panes = this.panes.slice(0, 1);
    }
    this.changed();
  }

  asFile() {
    return { kind: FILE_KIND, version: 1, panes: this.panes.map((pane) => pane.asFile()) };
  }

  /** Take in a file's text; gives what is wrong with it, or "". */
  load(text) {
    let file;
    try {
      file = JSON.parse(text);
    } catch (error) {
      return `The file is no JSON: ${error.message}`;
    }
    if (file?.kind !== FILE_KIND || file.version !== 1) {
      return `The file is no conversation of this page (kind "${FILE_KIND}", version 1).`;
    }
    const problem = fileProblem(file.panes);
    if (problem) return problem;
    this.panes.forEach((pane) => pane.stop());
    this.panes = file.panes.map((each) => {
      const pane = new Pane();
      pane.load(each);
      return pane;
    });
    this.changed();
    return "";
  }
}

function fileProblem(panes) {
  if (!Array.isArray(panes) || panes.length < 1 || panes.length > 2) {
    return "The file must hold one or two conversations in panes.";
  }
  for (const { settings, messages } of panes) {
    for (const [name, value] of Object.entries(settings ?? {})) {
      if (typeof value !== typeof FRESH[name]) return `The file's setting ${name} is not known.`;
    }
    if (!Array.isArray(messages)) return "The file has a conversation without messages.";
    for (const message of messages) {
      const calls = message?.role === "assistant" ? (message.tool_calls ?? []) : [];
      const hasText = typeof message?.content === "string";
      const isKnown = ["user", "assistant", "tool"].includes(message?.role);
      if (!isKnown || !Array.isArray(calls) || !calls.every(isCall) || !(hasText || calls.length)) {
        return "The file has a message that is none: a role, and content or tool_calls.";
      }
    }
  }
  return "";
}

function isCall(call) {
  const said = call?.function ?? call?.custom;
  return typeof said?.name === "string" && typeof (said.arguments ?? said.input) === "string";
}

export const session = new Session();
