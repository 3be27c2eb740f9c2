// The dashboard: what the engine does, from /metrics, live.
import { bytes, count, duration, html, percent, View } from "../lib/html.js";
import { byLabel, valueOf } from "../lib/metrics.js";
import { server } from "../lib/server.js";
import { Chart } from "./chart.js";
import { history } from "./history.js";

// Why no more of a prompt was found, as docs/server.md has it, in a few words.
const RESULTS = {
  found: "all was found",
  new_tokens: "the rest was new",
  differs: "another token came",
  no_prefix: "nothing begins like it",
  no_checkpoint: "no state was kept there",
  checkpoint_evicted: "the state was evicted",
  blocks_evicted: "the tokens were evicted",
  too_short: "shorter than a block",
  prompt_logprobs: "log probabilities of the prompt",
  caching_off: "the cache is off",
};
const one = (value) => (value < 10 && value % 1 ? value.toFixed(1) : count(value));
const rate = (value) => `${one(value)}/s`;

const CHARTS = [
  {
    title: "Queue",
    lines: [{ key: "running", label: "running" }, { key: "waiting", label: "waiting" }],
    format: one,
  },
  {
    title: "Tokens",
    lines: [{ key: "prefill", label: "prompt" }, { key: "decode", label: "answer" }],
    format: rate,
  },
  {
    title: "Time to first token",
    lines: [{ key: "ttft50", label: "p50" }, { key: "ttft95", label: "p95" }],
    format: duration,
    note: "Of the last minute, from a histogram.",
  },
  {
    title: "Time between tokens",
    lines: [{ key: "itl50", label: "p50" }, { key: "itl95", label: "p95" }],
    format: duration,
    note: "Of the last minute, from a histogram.",
  },
  {
    title: "Answer tokens a step",
    lines: [{ key: "batch", label: "batch" }],
    format: one,
    note: "How many sequences went on in a step.",
  },
  {
    title: "Prefix cache",
    lines: [{ key: "hitRate", label: "found" }, { key: "cacheUse", label: "in use" }],
    format: percent,
    note: "Prompt tokens found, of the last minute; cache blocks in use.",
  },
  {
    title: "Speculation",
    lines: [{ key: "accepted", label: "accepted" }],
    format: percent,
    note: "Guessed tokens that were right, of the last minute.",
    isThere: (series) => valueOf(series, "spec_decode_draft_tokens_total") > 0,
  },
];

export class Dashboard extends View {
  stores() {
    return [history, server];
  }

  render() {
    const { series, points, problem } = history;
    if (!series) return html`<div class="dashboard"><p role="status">${problem || absence()}</p></div>`;
    return html`<div class="dashboard" role="region" aria-label="Dashboard" tabindex="0">
      ${problem && html`<p class="trouble" role="alert">These numbers are old: ${problem}</p>`}
      <div class="charts">
        ${CHARTS.filter(({ isThere }) => !isThere || isThere(series)).map(
          (chart) => html`<${Chart} key=${chart.title} points=${points} ...${chart} />`,
        )}
      </div>
      <div class="tables">
        <${Memory} series=${series} />
        <${Shares}
          title="What the cache said"
          note="Sequences since the server started, by why no more of the prompt was found."
          empty="No request yet."
          values=${named(byLabel(series, "prefix_cache_lookups_total", "result"), RESULTS)}
          format=${count}
        />
        <${Shares}
          title="How answers ended"
          note="Since the server started."
          empty="No answer yet."
          values=${byLabel(series, "request_success_total", "finished_reason")}
          format=${count}
        />
        <${Shares}
          title="Errors"
          note="Since the server started, by code. A client that left is none."
          empty="No error."
          values=${byLabel(series, "request_errors_total", "code")}
          format=${count}
        />
      </div>
    </div>`;
  }
}

function absence() {
  if (!server.isOpen && server.about) return "The server asks for a key; give one above.";
  return "Reading the numbers…";
}

function named(values, names) {
  return Object.fromEntries(Object.entries(values).map(([key, value]) => [names[key] ?? key, value]));
}

/** The plan that was made at the start, and what of it is in use. */
function Memory({ series }) {
  const { available, ...plan } = byLabel(series, "memory_plan_bytes", "part");
  const uses = byLabel(series, "cache_bytes", "use");
  const of = (free, total) => {
    const all = valueOf(series, total);
    return [all - valueOf(series, free), all];
  };
  const meters = [
    ["Cache blocks", ...of("kv_blocks_free", "kv_blocks_total")],
    ["State slots", ...of("state_slots_free", "state_slots_total")],
  ];
  return html`<section class="card">
    <h2>Memory</h2>
    ${meters.map(([label, used, all]) => {
      const id = `meter-${label.replace(" ", "-")}`;
      return html`<div class="meter">
        <label for=${id}>${label}</label>
        <meter id=${id} max=${all || 1} value=${used}></meter>
        <span>${count(used)} of ${count(all)}</span>
      </div>`;
    })}
    <h3>Planned at the start${available && `, of ${bytes(available)} that were free`}</h3>
    <${Bars} values=${plan} format=${bytes} />
    <h3>What the cache serves</h3>
    <${Bars} values=${uses} format=${bytes} />
  </section>`;
}

function Shares({ title, note, empty, values, format }) {
  const isEmpty = Object.keys(values).length === 0;
  return html`<section class="card">
    <h2>${title}</h2>
    ${isEmpty ? html`<p>${empty}</p>` : html`<${Bars} values=${values} format=${format} />`}
    <p class="note">${note}</p>
  </section>`;
}

function Bars({ values, format }) {
  const largest = Math.max(...Object.values(values), 0) || 1;
  const entries = Object.entries(values).sort((a, b) => b[1] - a[1]);
  return html`<table class="bars">
    <tbody>
      ${entries.map(
        ([name, value]) =>
          html`<tr>
            <th scope="row">${name.replaceAll("_", " ")}</th>
            <td class="bar" aria-hidden="true">
              <span style=${{ width: `${(value / largest) * 100}%` }}></span>
            </td>
            <td>${format(value)}</td>
          </tr>`,
      )}
    </tbody>
  </table>`;
}
