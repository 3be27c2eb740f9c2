// What was spent: by key, by session, by step and by tool; of a gateway's accounts.
import { count, dollars, duration, html, moment, percent, View } from "../lib/html.js";
import { Reading } from "../lib/reading.js";
import { server } from "../lib/server.js";
import { Facts, saveFile, Table } from "../lib/table.js";

const PERIODS = { 1: "A day", 7: "A week", 30: "30 days", 366: "A year" };
const number = (title, of) => ({ title, of, isNumber: true });
const nameOf = (row) => row.key_name ?? "a deleted key";
const USED = [
  number("Requests", (row) => count(row.requests)),
  number("Prompt", (row) => count(row.prompt_tokens)),
  number("Cached", (row) => shareOf(row)),
  number("Answer", (row) => count(row.completion_tokens)),
  number("Cost", (row) => dollars(row.cost_usd)),
  number("Cache saved", (row) => dollars(row.cache_saving_usd)),
];

function shareOf(row) {
  const part = row.prompt_tokens ? ` (${percent(row.cached_tokens / row.prompt_tokens)})` : "";
  return count(row.cached_tokens) + part;
}

const sum = (rows, name) => rows.reduce((total, row) => total + Number(row[name]), 0);

async function ask(path, parameters) {
  const given = Object.entries(parameters).filter(([, value]) => value !== null);
  return server.ask(`${path}?${new URLSearchParams(given)}`, { manages: true });
}

export class Usage extends View {
  state = { days: 7, offset: 0, whose: null, chosen: null, problem: "" };
  keys = new Reading(() => this.#rows("key", 0));
  sessions = new Reading(() => this.#rows("session", this.state.offset));
  bill = new Reading(() => this.#bill());

  stores() {
    return [server, this.keys, this.sessions, this.bill];
  }

  componentDidMount() {
    super.componentDidMount();
    this.#read();
  }

  componentDidUpdate() {
    super.componentDidUpdate();
    if (server.keyVersion !== this.keyVersion) this.#change({ whose: null });
  }

  #read() {
    this.keyVersion = server.keyVersion;
    if (!server.isReadable) {
      for (const each of [this.keys, this.sessions, this.bill]) each.forget();
      return;
    }
    this.keys.again();
    this.sessions.again();
  }

  #parameters(group, offset) {
    const { days, whose } = this.state;
    return { group_by: group, days, offset, api_key_hash: group === "session" ? whose?.key_hash ?? null : null };
  }

  async #rows(group, offset) {
    return (await ask("/api/v1/usage", this.#parameters(group, offset))).json();
  }

  #billPath() {
    return `/api/v1/sessions/${encodeURIComponent(this.state.chosen.session_id)}`;
  }

  async #bill() {
    return (await ask(this.#billPath(), { api_key_hash: this.state.chosen.key_hash })).json();
  }

  #change(state) {
    this.setState({ offset: 0, chosen: null, ...state }, () => this.#read());
  }

  async #save(name, path, parameters) {
    try {
      const response = await ask(path, { ...parameters, format: "csv" });
      saveFile(name, await response.text(), "text/csv");
      this.setState({ problem: "" });
    } catch (error) {
      this.setState({ problem: error.message });
    }
  }

  render(_, { days, whose, chosen, problem }) {
    if (!server.isReadable) {
      return html`<div class="sheet"><p role="status">The gateway asks for a key; give one above.</p></div>`;
    }
    const trouble = problem || this.keys.problem || this.sessions.problem;
    return html`<div class="sheet" role="region" aria-label="Usage" tabindex="0">
      <div class="row">
        <label for="period">Of the last</label>
        <select id="period" onChange=${(event) => this.#change({ days: Number(event.target.value) })}>
          ${Object.entries(PERIODS).map(
            ([value, text]) =>
              html`<option value=${value} selected=${Number(value) === days}>${text.toLowerCase()}</option>`,
          )}
        </select>
        <button type="button" onClick=${() => this.#read()}>Read again</button>
      </div>
      ${trouble && html`<p class="trouble" role="alert">${trouble}</p>`}
      ${this.keys.value && html`<${Totals} rows=${this.keys.value.data} />`}
      ${this.keys.value?.has_more &&
      html`<p class="note">Of the keys that were used last; the CSV has them all.</p>`}
      ${this.keys.value && this.keyTable(this.keys.value.data)}
      ${this.sessions.value && this.sessionTable(this.sessions.value, whose)}
      ${chosen && this.billView(chosen)}
    </div>`;
  }

  keyTable(rows) {
    const choose = (row) => () => this.#change({ whose: row });
    const columns = [
      {
        title: "Key",
        of: (row) => html`<button type="button" class="link" onClick=${choose(row)}>${nameOf(row)}</button>`,
      },
      { title: "", of: (row) => html`<code>${row.key_label}</code>` },
      ...USED,
      { title: "Last", of: (row) => moment(row.last_at) },
    ];
    const save = () => this.#save("keys.csv", "/api/v1/usage", this.#parameters("key", 0));
    return html`<section class="card">
      <${Heading} title="Keys" onSave=${rows.length && save} />
      <${Table} title="Keys" columns=${columns} rows=${rows} empty="No request in this time." />
      ${!server.hasManagementKey &&
      html`<p class="note">These are your key's own. A management key sees those of all.</p>`}
    </section>`;
  }

  sessionTable({ data, has_more: hasMore }, whose) {
    const { offset } = this.state;
    const choose = (row) => () => this.setState({ chosen: row }, () => this.#openBill());
    const columns = [
      {
        title: "Session",
        of: (row) => html`<button type="button" class="link" onClick=${choose(row)}>${row.session_id}</button>`,
      },
      { title: "Key", of: nameOf },
      ...USED,
      { title: "Last", of: (row) => moment(row.last_at) },
    ];
    const save = () => this.#save("sessions.csv", "/api/v1/usage", this.#parameters("session", 0));
    const turn = (by) => () => this.setState({ offset: offset + by }, () => this.sessions.again());
    return html`<section class="card">
      <${Heading} title=${whose ? `Sessions of ${nameOf(whose)}` : "Sessions"} onSave=${data.length && save} />
      <${Table} title="Sessions" columns=${columns} rows=${data} empty="No session in this time." />
      <div class="row">
        ${whose &&
        html`<button type="button" onClick=${() => this.#change({ whose: null })}>Of all keys</button>`}
        ${offset > 0 && html`<button type="button" onClick=${turn(-100)}>Newer</button>`}
        ${hasMore && html`<button type="button" onClick=${turn(100)}>Older</button>`}
      </div>
    </section>`;
  }

  #openBill() {
    this.bill.forget();
    this.bill.again();
  }

  billView(chosen) {
    const { value, problem } = this.bill;
    const close = () => this.setState({ chosen: null });
    const save = (table) => () => {
      const parameters = { api_key_hash: chosen.key_hash, table };
      this.#save(`${table}.csv`, this.#billPath(), parameters);
    };
    return html`<section class="card" aria-label="Bill">
      <div class="row">
        <h2 class="long">Bill of ${chosen.session_id}</h2>
        <button type="button" class="quiet" onClick=${close}>Close</button>
      </div>
      ${problem && html`<p class="trouble" role="alert">${problem}</p>`}
      ${!value && !problem && html`<p role="status">Reading…</p>`}
      ${value && html`<${Bill} bill=${value} onSave=${save} />`}
    </section>`;
  }
}

function Heading({ title, onSave }) {
  return html`<div class="row">
    <h2 class="long">${title}</h2>
    ${onSave &&
    html`<button type="button" class="quiet" onClick=${onSave} aria-label=${`${title} as CSV`}>CSV</button>`}
  </div>`;
}

function Totals({ rows }) {
  const saved = sum(rows, "cache_saving_usd");
  const cost = sum(rows, "cost_usd");
  const [prompt, cached] = [sum(rows, "prompt_tokens"), sum(rows, "cached_tokens")];
  const items = [
    ["Cost", dollars(cost)],
    ["The cache saved", dollars(saved)],
    ["Requests", count(sum(rows, "requests"))],
    ["Prompt tokens", count(prompt)],
    ["Found cached", shareOf({ prompt_tokens: prompt, cached_tokens: cached })],
    ["Answer tokens", count(sum(rows, "completion_tokens"))],
  ];
  return html`<${Facts} items=${items} />`;
}

const STEPS = [
  number("Step", (step) => step.step),
  { title: "Model", of: (step) => step.model },
  { title: "Provider", of: (step) => step.provider ?? "–" },
  { title: "Outcome", of: (step) => step.finish_reason ?? step.outcome },
  number("New", (step) => count(step.new_tokens)),
  number("Prompt", (step) => count(step.prompt_tokens)),
  number("Cached", (step) => shareOf(step)),
  number("Answer", (step) => count(step.completion_tokens)),
  number("Cost", (step) => dollars(step.cost_usd)),
  number("of it re-sent", (step) => dollars(step.resent_usd)),
  number("Cache saved", (step) => dollars(step.cache_saving_usd)),
];
const TOOLS = [
  { title: "Tool", of: (tool) => html`<code>${tool.tool}</code>` },
  number("Results", (tool) => count(tool.results)),
  number("Tokens", (tool) => count(tool.tokens)),
  number("When it came", (tool) => dollars(tool.first_usd)),
  number("Sent again", (tool) => dollars(tool.resent_usd)),
  number("In all", (tool) => dollars(tool.total_usd)),
];

function Bill({ bill, onSave }) {
  const { totals } = bill;
  const perTask = totals.output_tokens_per_finished_task;
  const items = [
    ["Cost", dollars(totals.cost_usd)],
    ["Paid for re-sending", dollars(totals.paid_for_resending_usd)],
    ["The cache saved", dollars(totals.saved_by_cache_usd)],
    ["Tasks finished", count(totals.finished_tasks)],
    ["Answer tokens a task", perTask === null ? "–" : count(perTask)],
  ];
  if (totals.cache_write_tokens > 0) items.push(["Written to a cache", count(totals.cache_write_tokens)]);
  if (totals.code_calls > 0) {
    items.push(["Code that ran", `${count(totals.code_calls)} times, ${duration(totals.code_seconds)}`]);
  }
  if (Number(totals.unattributed_usd)) items.push(["For what is not known", dollars(totals.unattributed_usd)]);
  return html`<${Facts} items=${items} />
    <${Heading} title="Steps" onSave=${onSave("steps")} />
    <${Table} title="Steps" columns=${STEPS} rows=${bill.steps} empty="No step." />
    <${Heading} title="What tools' results cost" onSave=${bill.tools.length && onSave("tool_results")} />
    <${Table}
      title="What tools' results cost"
      columns=${TOOLS}
      rows=${bill.tools}
      empty="No tool gave a result."
    />
    <p class="note">
      Tokens of a message are estimated by its bytes; tokens and money of a step are what was counted and paid.
    </p>`;
}
