// Messages: what was said, the calls, and what was measured.
import { Component, count, dollars, duration, html, View } from "../lib/html.js";
import { CopyButton } from "../lib/dialog.js";
import { Markdown } from "../lib/markdown.js";
import { server } from "../lib/server.js";
import { PromptDialog, reasonOf } from "./prompt_view.js";
import { codeOf } from "./run.js";

export function UserMessage({ message, onEdit }) {
  return html`<article class="message user" aria-label="You">
    <div class="said">${message.content}</div>
    <div class="row actions">
      <button type="button" class="quiet" onClick=${onEdit}>Edit</button>
      <${CopyButton} text=${() => message.content} />
    </div>
  </article>`;
}

export class AnswerMessage extends View {
  stores() {
    return [this.props.answer];
  }

  render({ answer, pane }, { showsPrompt }) {
    const close = () => this.setState({ showsPrompt: false });
    return html`<article class="message answer" aria-label="Model" aria-busy=${!answer.isDone}>
      ${answer.reasoning &&
      html`<details class="reasoning">
        <summary>Thinking</summary>
        <div class="plain-text">${answer.reasoning}</div>
      </details>`}
      ${answer.isData
        ? answer.text && html`<pre class="code" tabindex="0">${answer.text}</pre>`
        : html`<${Markdown} of=${answer} />`}
      ${answer.calls.map(
        (call) => html`<${ToolCard} key=${call.id} call=${call} answer=${answer} pane=${pane} />`,
      )}
      <${Waiting} answer=${answer} />
      ${answer.error && html`<${Trouble} error=${answer.error} pane=${pane} />`}
      ${answer.state === "stopped" && html`<p class="note">Stopped.</p>`}
      ${answer.finishReason === "length" &&
      html`<p class="note">Cut off: the answer reached its longest length.</p>`}
      ${(answer.usage || answer.bill) && html`<${Measured} answer=${answer} />`}
      ${answer.isDone &&
      html`<div class="row actions">
        <button type="button" class="quiet" onClick=${() => pane.retry(answer)}>Retry</button>
        ${answer.text && html`<${CopyButton} text=${() => answer.text} />`}
        ${answer.promptIds &&
        html`<button type="button" class="quiet" onClick=${() => this.setState({ showsPrompt: true })}>
          Prompt
        </button>`}
      </div>`}
      ${showsPrompt && html`<${PromptDialog} answer=${answer} onClose=${close} />`}
    </article>`;
  }
}

function Waiting({ answer }) {
  if (answer.isDone || answer.state === "writing") return null;
  const told = answer.progress;
  if (!told || told.processed >= told.total) {
    return html`<p class="note" role="status">
      ${answer.state === "waiting" ? "Sending…" : "Waiting for the first token…"}
    </p>`;
  }
  const cached = told.cached ? `, ${count(told.cached)} from the cache` : "";
  return html`<div class="progress">
    <progress max=${told.total} value=${told.processed} aria-label="Prompt" />
    <span class="note" role="status">
      Prompt: ${count(told.processed)} of ${count(told.total)} tokens${cached}
    </span>
  </div>`;
}

function Trouble({ error, pane }) {
  return html`<div class="trouble" role="alert">
    <p>${error.message}</p>
    ${error.code === "context_length_exceeded" &&
    html`<p>
        The conversation no longer fits the model's context. Begin a new one, or take a message back
        with Edit.
      </p>
      <button type="button" onClick=${() => pane.clear()}>New conversation</button>`}
  </div>`;
}

function Measured({ answer }) {
  const usage = answer.usage ?? usageOf(answer.bill);
  const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const drafts = usage.completion_tokens_details?.accepted_prediction_tokens;
  const items = [
    ["First token", answer.timeToFirstToken === null ? null : duration(answer.timeToFirstToken)],
    ["Tokens/s", answer.tokensPerSecond === null ? null : answer.tokensPerSecond.toFixed(1)],
    ["Prompt", count(usage.prompt_tokens)],
    ["Cached", count(cached)],
    ["Answer", count(usage.completion_tokens)],
    ["Guessed right", drafts === undefined ? null : count(drafts)],
    ...billed(answer.bill),
  ];
  return html`<div class="measured">
    <dl>
      ${items.map(
        ([name, value]) => value !== null && html`<div><dt>${name}</dt><dd>${value}</dd></div>`,
      )}
    </dl>
    ${reasonOf(usage) && html`<p class="note">Cache: ${reasonOf(usage)}</p>`}
  </div>`;
}

/** As an answer says it that was not stopped before. */
function usageOf(bill) {
  return {
    prompt_tokens: bill.tokens_prompt,
    completion_tokens: bill.tokens_completion,
    prompt_tokens_details: { cached_tokens: bill.native_tokens_cached },
  };
}

/** What a gateway's accounts say of it. */
function billed(bill) {
  if (!bill) return [];
  return [
    ["Cost", dollars(bill.total_cost)],
    ["Cache saved", dollars(bill.cache_discount)],
    ["Served by", bill.provider_name],
  ];
}

function pretty(args) {
  try {
    return JSON.stringify(JSON.parse(args), null, 2);
  } catch {
    return args;
  }
}

/** A call, and the place for its result: written by hand, or what its code gave in the sandbox. */
class ToolCard extends Component {
  state = { text: "", isRunning: false, problem: "" };
  #stopper = null;

  async run(code) {
    const { call, pane } = this.props;
    this.#stopper = new AbortController();
    this.setState({ isRunning: true, problem: "" });
    try {
      const text = await pane.runner.run(code, this.#stopper.signal);
      this.setState({ isRunning: false });
      pane.giveResult(call, text);
    } catch (error) {
      const problem = error.name === "AbortError" ? "" : error.message;
      this.setState({ isRunning: false, problem });
    }
  }

  componentWillUnmount() {
    this.#stopper?.abort();
  }

  render({ call, answer, pane }, { text, isRunning, problem }) {
    const code = server.has("code") ? codeOf(call) : null;
    const id = `result-${call.id}`;
    const isOpen = call.result === null && answer.state === "done" && pane.last === answer;
    const send = (event) => {
      event.preventDefault();
      pane.giveResult(call, text);
    };
    return html`<section class="tool-card" aria-label=${`Call of ${call.name}`}>
      <h3><span class="tag">call</span> <code>${call.name}</code></h3>
      <pre class="code" tabindex="0">${code ?? (call.isCustom ? call.args : pretty(call.args))}</pre>
      ${call.result !== null &&
      html`<h3><span class="tag">result</span></h3>
        <pre class="code" tabindex="0">${call.result}</pre>`}
      ${isOpen &&
      html`<form onSubmit=${send}>
        <label for=${id}>Answer by hand: what would the tool return?</label>
        <textarea
          id=${id}
          rows="2"
          value=${text}
          onInput=${(event) => this.setState({ text: event.target.value })}
        ></textarea>
        ${problem && html`<p class="problems" role="alert">${problem}</p>`}
        <div class="row">
          <button type="submit">Send result</button>
          ${code !== null &&
          !isRunning &&
          html`<button type="button" onClick=${() => this.run(code)}>Run it in the sandbox</button>`}
          ${isRunning &&
          html`<span class="note" role="status">Running in the sandbox…</span>
            <button type="button" onClick=${() => this.#stopper.abort()}>Stop it</button>`}
        </div>
      </form>`}
    </section>`;
  }
}
