// The sandboxes of a key: which there are, what they may use and use, what ran in them; and their end.
import { bytes, count, html, moment, percent, View } from "../lib/html.js";
import { Reading } from "../lib/reading.js";
import { server } from "../lib/server.js";
import { Facts, Table } from "../lib/table.js";

const EVERY_MS = 2000;
const MIB = 2 ** 20;
// Colours and the like that programs write for terminals.
const ESCAPES = /\x1b\[[0-9;?]*[A-Za-z]/g;

const pathOf = ({ sandboxID: id }) => `/sandboxes/${encodeURIComponent(id)}`;
const read = async (path) => (await server.ask(path)).json();

export class Sandboxes extends View {
  state = { chosen: null, isEnding: false, problem: "" };
  list = new Reading(() => read("/v2/sandboxes"), EVERY_MS);
  opened = new Reading(() => this.#details(), EVERY_MS);

  stores() {
    return [server, this.list, this.opened];
  }

  componentDidMount() {
    super.componentDidMount();
    this.#follow();
  }

  componentDidUpdate() {
    super.componentDidUpdate();
    if (server.keyVersion !== this.keyVersion || server.isOpen !== this.wasOpen) this.#follow();
  }

  componentWillUnmount() {
    super.componentWillUnmount();
    this.list.stop();
    this.opened.stop();
  }

  #follow() {
    this.keyVersion = server.keyVersion;
    this.wasOpen = server.isOpen;
    this.#close();
    this.list.stop();
    this.list.forget();
    if (server.isOpen) this.list.start();
  }

  async #details() {
    const { chosen } = this.state;
    const about = await read(pathOf(chosen));
    const [{ logs }, samples] = await Promise.all([
      read(`/v2${pathOf(chosen)}/logs`),
      about.state === "running" ? read(`${pathOf(chosen)}/metrics`) : [],
    ]);
    return { about, logs, usage: samples[0] ?? null };
  }

  #open(chosen) {
    this.setState({ chosen, isEnding: false, problem: "" }, () => {
      this.opened.forget();
      this.opened.start();
    });
  }

  #close() {
    this.opened.stop();
    this.opened.forget();
    this.setState({ chosen: null, isEnding: false });
  }

  async #kill() {
    try {
      await server.ask(pathOf(this.state.chosen), { method: "DELETE" });
      this.#close();
    } catch (error) {
      this.setState({ problem: error.message, isEnding: false });
    }
    this.list.again();
  }

  render(_, { chosen, isEnding, problem }) {
    const { value } = this.list;
    const trouble = problem || this.list.problem;
    return html`<div class="sheet" role="region" aria-label="Sandboxes" tabindex="0">
      ${trouble && html`<p class="trouble" role="alert">${trouble}</p>`}
      ${!value && !trouble && html`<p role="status">${server.isOpen ? "Reading…" : "The server asks for a key; give one above."}</p>`}
      ${value &&
      html`<section class="card">
        <h2>Sandboxes of this key</h2>
        <${Table} title="Sandboxes of this key" columns=${this.columns()} rows=${value} empty=${NONE} />
      </section>`}
      ${chosen && this.details(chosen, isEnding)}
    </div>`;
  }

  columns() {
    const open = (row) => () => this.#open(row);
    return [
      {
        title: "Sandbox",
        of: (row) => html`<button type="button" class="link" onClick=${open(row)}>${row.sandboxID}</button>`,
      },
      { title: "State", of: (row) => row.state },
      { title: "Template", of: (row) => html`<span class="told">${row.templateID}</span>` },
      { title: "Metadata", of: (row) => html`<span class="told">${metadataOf(row)}</span>` },
      { title: "Since", of: (row) => moment(row.startedAt) },
      { title: "Until", of: (row) => (row.state === "paused" ? "it is killed" : moment(row.endAt)) },
    ];
  }

  details(chosen, isEnding) {
    const { value, problem } = this.opened;
    const ask = (isAsked) => () => this.setState({ isEnding: isAsked });
    return html`<section class="card" aria-label="Sandbox">
      <div class="row">
        <h2 class="long">${chosen.sandboxID}</h2>
        <button type="button" class="quiet" onClick=${() => this.#close()}>Close</button>
        ${!isEnding && html`<button type="button" onClick=${ask(true)}>Kill</button>`}
      </div>
      ${isEnding &&
      html`<div class="row trouble" role="alertdialog" aria-label="Kill it?">
        <p>Its processes end and its files are gone.</p>
        <button type="button" onClick=${() => this.#kill()}>Kill it</button>
        <button type="button" onClick=${ask(false)}>Keep it</button>
      </div>`}
      ${problem && html`<p class="trouble" role="alert">${value && "What is below is old: "}${problem}</p>`}
      ${!value && !problem && html`<p role="status">Reading…</p>`}
      ${value && html`<${Details} ...${value} />`}
    </section>`;
  }
}

const NONE = "None. What is made with this key, by E2B's SDK or otherwise, is shown here.";

function metadataOf({ metadata }) {
  return Object.entries(metadata ?? {})
    .map(([name, value]) => `${name}: ${value}`)
    .join(", ");
}

function Details({ about, logs, usage }) {
  const { limits } = about;
  const items = [
    ["Memory, at most", bytes(about.memoryMB * MIB)],
    ["Files, at most", `${bytes(about.diskSizeMB * MIB)}, ${count(limits.diskInodes)} of them`],
    ["Processes, at most", count(limits.processes)],
    ["CPU time of a process", `${count(limits.cpuSecondsOfAProcess)} s`],
    ["Output of a run", bytes(limits.outputBytesOfARun)],
    ["Network", about.allowInternetAccess ? "the host's" : "none"],
    ["At its end it is", about.lifecycle.onTimeout === "pause" ? "paused" : "killed"],
  ];
  return html`<${Facts} items=${items} />
    ${usage &&
    html`<${Meter} label="Memory" used=${usage.memUsed} of=${usage.memTotal} />
      <${Meter} label="Files" used=${usage.diskUsed} of=${usage.diskTotal} />
      <p class="note">CPU since it was made: ${percent(usage.cpuUsedPct / 100)} of one.</p>`}
    ${!usage && html`<p class="note">It is paused: its files are kept, nothing runs.</p>`}
    <h3>What ran, and what it wrote</h3>
    <${Output} logs=${logs} />`;
}

function Meter({ label, used, of }) {
  const id = `sandbox-${label}`;
  return html`<div class="meter">
    <label for=${id}>${label}</label>
    <meter id=${id} max=${of} value=${used}></meter>
    <span>${bytes(used)} of ${bytes(of)}</span>
  </div>`;
}

function Output({ logs }) {
  if (!logs.length) return html`<p class="note">Nothing yet.</p>`;
  return html`<div class="output" role="log" aria-label="Output" tabindex="0">
    ${logs.map(
      ({ timestamp, message, level, fields }) =>
        html`<div class=${`entry ${level}`} title=${moment(timestamp)}>
          <span class="note">${fields.source}</span>
          <pre>${message.replace(ESCAPES, "")}</pre>
        </div>`,
    )}
  </div>`;
}
