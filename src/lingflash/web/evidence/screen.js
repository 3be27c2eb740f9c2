// Claims beside what was measured of them, and the records that say so.
import { html, View } from "../lib/html.js";
import { Reading } from "../lib/reading.js";
import { server } from "../lib/server.js";
import { Table } from "../lib/table.js";

const code = (text) => html`<code class="told">${text}</code>`;
const told = (text) => text && html`<span class="told">${text}</span>`;
const CLAIMS = [
  { title: "Claim", of: (row) => told(row.claim) },
  { title: "Announced", of: (row) => told(row.announced) },
  { title: "Here", of: (row) => (row.text ? told(row.text) : html`<em>not measured</em>`) },
  { title: "Command", of: (row) => code(row.command) },
  { title: "Machine", of: (row) => told(row.machine) },
];
const RECORDS = [
  { title: "What", of: (row) => told(row.title) },
  { title: "Command", of: (row) => code(row.command) },
  { title: "Machine", of: (row) => told(row.machine) },
  { title: "When, commit", of: (row) => row.when },
  { title: "File", of: (row) => row.file },
];

/** A row for each figure of a claim; its words stand in the first. */
function rowsOf({ claim, announced, command, here }) {
  if (!here.length) return [{ claim, announced, command, machine: "–", text: "" }];
  return here.map((figure, i) => ({
    claim: i ? "" : claim,
    announced: i ? "" : announced,
    ...figure,
  }));
}

export class Evidence extends View {
  evidence = new Reading(async () => (await server.ask("/evidence")).json());

  stores() {
    return [server, this.evidence];
  }

  componentDidMount() {
    super.componentDidMount();
    this.#read();
  }

  componentDidUpdate() {
    super.componentDidUpdate();
    if (server.keyVersion !== this.keyVersion) this.#read();
  }

  #read() {
    this.keyVersion = server.keyVersion;
    if (server.isOpen) this.evidence.again();
    else this.evidence.forget();
  }

  render() {
    const { value, problem } = this.evidence;
    return html`<div class="sheet" role="region" aria-label="Evidence" tabindex="0">
      ${problem && html`<p class="trouble" role="alert">${problem}</p>`}
      ${!value && !problem && html`<p role="status">${server.isOpen ? "Reading…" : "The server asks for a key; give one above."}</p>`}
      ${value &&
      html`<p class="note">
          What is announced is never joined with what is ours; figures of another model are named as that
          model's.
        </p>
        <section class="card">
          <h2>Claims</h2>
          <${Table} title="Claims" columns=${CLAIMS} rows=${value.claims.flatMap(rowsOf)} empty="None." stacks />
        </section>
        <section class="card">
          <h2>Records</h2>
          <${Table} title="Records" columns=${RECORDS} rows=${value.records} empty="The folder has none." stacks />
        </section>`}
    </div>`;
  }
}
