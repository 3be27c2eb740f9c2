// The prompt as the model read it, with the part that was found in the cache shaded.
import { Component, count, html } from "../lib/html.js";
import { Dialog } from "../lib/dialog.js";
import { server } from "../lib/server.js";

/** Why no more of a prompt was found; docs/server.md, "The prefix cache". */
export const REASONS = {
  found: () => "All of it that could be was found; the last token is always computed.",
  new_tokens: () => "All that is known was found; the rest of the prompt is new.",
  differs: (at) => `What is known goes on with another token at ${count(at)}: something changed there.`,
  no_prefix: () => "Nothing that is known begins like this prompt.",
  no_checkpoint: (at) => `Known up to token ${count(at)}, but no state was kept there; one is kept now.`,
  checkpoint_evicted: (at) => `Known up to token ${count(at)}, but the state there was evicted.`,
  blocks_evicted: (at) => `The tokens from ${count(at)} on were known and were evicted.`,
  too_short: () => "The prompt is shorter than a block of the cache.",
  prompt_logprobs: () => "Log probabilities of the prompt need every token computed.",
  caching_off: () => "The prefix cache is off.",
};

/** The sentence for an answer's cache report, or "". */
export function reasonOf(usage) {
  const report = usage?.cache_report?.[0];
  if (!report) return "";
  return REASONS[report.result]?.(report.position) ?? report.result;
}

async function textOf(tokens) {
  if (!tokens.length) return "";
  return (await (await server.ask("/detokenize", { json: { tokens } })).json()).prompt;
}

export class PromptDialog extends Component {
  state = { pieces: null, problem: "" };

  async componentDidMount() {
    const { promptIds: ids, usage } = this.props.answer;
    const cached = usage?.prompt_tokens_details?.cached_tokens ?? 0;
    const report = usage?.cache_report?.[0];
    const cut = Math.max(report?.position ?? cached, cached);
    const parts = [ids.slice(0, cached), ids.slice(cached, cut), ids.slice(cut)];
    try {
      this.setState({ pieces: await Promise.all(parts.map(textOf)), cached });
    } catch (error) {
      this.setState({ problem: error.message });
    }
  }

  render({ answer, onClose }, { pieces, problem, cached }) {
    return html`<${Dialog} title="The prompt as the model read it" onClose=${onClose}>
      ${problem && html`<p class="problems" role="alert">${problem}</p>`}
      ${!pieces && !problem && html`<p>Reading…</p>`}
      ${pieces &&
      html`<p class="note">
          <mark class="cached">Shaded</mark>
          ${`: ${count(cached)} of ${count(answer.promptIds.length)} tokens, found in the cache. `}
          ${reasonOf(answer.usage)}
        </p>
        <pre class="prompt" tabindex="0"><mark class="cached">${pieces[0]}</mark>${pieces[1] &&
        html`<span class="known" title="known, but computed again">${pieces[1]}</span>`}${pieces[2]}</pre>`}
    <//>`;
  }
}
