// How each upstream of a gateway is now: breakers, pins, speed, and what failed last.
import { count, duration, html, moment, View } from "../lib/html.js";
import { Reading } from "../lib/reading.js";
import { server } from "../lib/server.js";
import { Facts, Table } from "../lib/table.js";

const EVERY_MS = 5000;
const number = (title, of) => ({ title, of, isNumber: true });
const orDash = (value, format) => (value === null ? "–" : format(value));
const ENDPOINTS = [
  { title: "Model", of: (each) => each.model },
  { title: "There called", of: (each) => each.upstream_model },
  { title: "Weights", of: (each) => each.quantization },
  number("Sessions", (each) => count(each.pinned_sessions)),
  number("Answered", (each) => count(each.answered)),
  number("Failed", (each) => count(each.failed)),
  number("First content", (each) => orDash(each.latency_ms, (ms) => duration(ms / 1e3))),
  number("Tokens/s", (each) => orDash(each.tokens_per_s, (rate) => rate.toFixed(1))),
  { title: "Last answer", of: (each) => orDash(each.last_answer_at, moment) },
];
const FAILURES = [
  { title: "When", of: (each) => moment(each.at) },
  { title: "What", of: (each) => html`<code>${each.code}</code>` },
  number("Status", (each) => each.status || "–"),
  { title: "Endpoint", of: (each) => each.endpoint },
  { title: "It was said", of: (each) => html`<span class="told">${each.message}</span>` },
];
const STATES = { open: "left alone", half_open: "on trial" };

export class Routes extends View {
  routes = new Reading(
    async () => (await server.ask("/api/v1/routes", { manages: true })).json(),
    EVERY_MS,
  );

  stores() {
    return [server, this.routes];
  }

  componentDidMount() {
    super.componentDidMount();
    this.#follow();
  }

  componentDidUpdate() {
    super.componentDidUpdate();
    if (server.keyVersion !== this.keyVersion) this.#follow();
  }

  componentWillUnmount() {
    super.componentWillUnmount();
    this.routes.stop();
  }

  #follow() {
    this.keyVersion = server.keyVersion;
    this.routes.stop();
    this.routes.forget();
    if (server.hasManagementKey) this.routes.start();
  }

  render() {
    const { value, problem } = this.routes;
    if (!server.hasManagementKey) {
      return html`<div class="sheet">
        <p role="status">Routes are shown to a management key; give one above.</p>
      </div>`;
    }
    return html`<div class="sheet" role="region" aria-label="Routes" tabindex="0">
      ${problem && html`<p class="trouble" role="alert">${value && "What is below is old: "}${problem}</p>`}
      ${!value && !problem && html`<p role="status">Reading…</p>`}
      ${value?.degraded.map((reason) => html`<p class="trouble" role="alert">${reason}</p>`)}
      ${value?.data.map((upstream) => html`<${Upstream} key=${upstream.slug} upstream=${upstream} />`)}
    </div>`;
  }
}

function Upstream({ upstream }) {
  const { breakers } = upstream;
  const house = breakers.find(({ key, replica }) => key === "house" && replica === null);
  const brought = breakers.filter(({ key }) => key === "brought").length;
  const rest = house?.rests_s > 0 ? ` for ${duration(house.rests_s)}` : "";
  const items = [
    ["Address", upstream.base_url ?? `replicas that ${upstream.directory} knows`],
    ["Speaks", upstream.dialects.join(", ")],
    ["House's key", upstream.has_house_key ? "yes, or none is needed" : "none: brought keys alone"],
  ];
  for (const { replica, rests_s: seconds } of breakers.filter((each) => each.replica !== null)) {
    items.push(["Replica left alone", `${replica} for ${duration(seconds)}`]);
  }
  if (brought) items.push(["Brought keys that rest", count(brought)]);
  return html`<section class="card" aria-label=${upstream.name}>
    <div class="row">
      <h2 class="long">${upstream.name}</h2>
      <span class=${house ? "tag bad" : "tag good"}>${house ? STATES[house.state] + rest : "in use"}</span>
    </div>
    <${Facts} items=${items} />
    <${Table} title=${`Endpoints of ${upstream.name}`} columns=${ENDPOINTS} rows=${upstream.endpoints} empty="No model is served by it." />
    <h3>What failed last</h3>
    <${Table} title=${`Failures of ${upstream.name}`} columns=${FAILURES} rows=${upstream.failures} empty="Nothing since the gateway began." />
  </section>`;
}
