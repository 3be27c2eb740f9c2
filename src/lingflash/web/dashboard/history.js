// What /metrics said in the last hour, as points of charts. It is kept while the page is open.
import { Store } from "../lib/html.js";
import { grown, grownBuckets, quantile, readMetrics, valueOf } from "../lib/metrics.js";
import { server } from "../lib/server.js";

const EVERY_MS = 2000;
const KEPT_S = 3600;
// Percentiles and hit rates are of so long a time: of less they jump.
const WINDOW_S = 60;

class History extends Store {
  /** Points of the last hour, oldest first. */
  points = [];
  /** The newest reading, and why there is none. */
  series = null;
  problem = "";
  #recent = [];

  /** Begin to read, for as long as the page is there: whichever screen is shown. */
  async follow() {
    for (;;) {
      const isThere = server.about?.screens.includes("dashboard") && server.state !== "offline";
      if (isThere && server.isOpen) await this.#read();
      await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    }
  }

  async #read() {
    try {
      const series = readMetrics(await (await server.ask("/metrics")).text());
      this.#take(series, Date.now() / 1000);
      this.problem = "";
    } catch (error) {
      this.problem = error.message;
    }
    this.changed();
  }

  #take(series, time) {
    this.series = series;
    this.#recent.push({ series, time });
    // A tab that is not seen reads less often.
    while (this.#recent.length > 2 && this.#recent[0].time < time - WINDOW_S) this.#recent.shift();
    const before = this.#recent.at(-2);
    if (!before) return;
    this.points.push(pointOf({ series, time }, before, this.#recent[0]));
    while (this.points[0].time < time - KEPT_S) this.points.shift();
  }
}

function pointOf(now, before, first) {
  const seconds = now.time - before.time;
  const more = (name, since) =>
    grown(valueOf(now.series, `${name}_total`), valueOf(since.series, `${name}_total`));
  const rate = (name) => more(name, before) / seconds;
  const share = (part, whole) => {
    const all = more(whole, first);
    return all ? more(part, first) / all : null;
  };
  const percentile = (name, part) =>
    quantile(grownBuckets(now.series, first.series, `${name}_seconds`), part);
  const steps = more("engine_steps", before);
  return {
    time: now.time,
    running: valueOf(now.series, "num_requests_running"),
    waiting: valueOf(now.series, "num_requests_waiting"),
    prefill: rate("engine_prompt_tokens"),
    decode: rate("engine_generation_tokens"),
    batch: steps ? more("engine_generation_tokens", before) / steps : null,
    ttft50: percentile("time_to_first_token", 0.5),
    ttft95: percentile("time_to_first_token", 0.95),
    itl50: percentile("inter_token_latency", 0.5),
    itl95: percentile("inter_token_latency", 0.95),
    cacheUse: valueOf(now.series, "kv_cache_usage_perc"),
    hitRate: share("prefix_cache_hits", "prefix_cache_queries"),
    accepted: share("spec_decode_accepted_tokens", "spec_decode_draft_tokens"),
  };
}

export const history = new History();
