// Prometheus' text format, read; and what can be computed from two readings of it.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const PREFIX = "lingflash_";
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

/** All series of a text: name without the prefix to [{labels, value}]. */
export function readMetrics(text) {
  const series = new Map();
  for (const line of text.split("\n")) {
    const match = line.startsWith("#") ? null : LINE.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, name, value] of (match[2] ?? "").matchAll(LABEL)) {
      labels[name] = value.replace(/\\[n"\\]/g, (escape) => ESCAPES[escape]);
    }
    const name = match[1].startsWith(PREFIX) ? match[1].slice(PREFIX.length) : match[1];
    if (!series.has(name)) series.set(name, []);
    series.get(name).push({ labels, value: Number(match[3]) });
  }
  return series;
}

/** One value of a series without labels; 0 if there is none. */
export function valueOf(series, name) {
  return series.get(name)?.[0]?.value ?? 0;
}

/** Label value to value, of a series with one label. */
export function byLabel(series, name, label) {
  const found = {};
  for (const { labels, value } of series.get(name) ?? []) {
    if (labels[label] !== undefined) found[labels[label]] = value;
  }
  return found;
}

/** How much a counter grew; one that is smaller than before began again. */
export function grown(now, before) {
  return now >= before ? now - before : now;
}

/** How much a histogram's buckets grew: [[upper bound, count below it]], in order. */
export function grownBuckets(now, before, name) {
  const old = byLabel(before, `${name}_bucket`, "le");
  return (now.get(`${name}_bucket`) ?? []).map(({ labels, value }) => [
    labels.le === "+Inf" ? Infinity : Number(labels.le),
    grown(value, old[labels.le] ?? 0),
  ]);
}

/** A quantile of buckets, linear within one as Prometheus' own; null if they hold nothing. */
export function quantile(buckets, part) {
  const total = buckets.at(-1)?.[1] ?? 0;
  if (!total) return null;
  const rank = part * total;
  let low = 0;
  let below = 0;
  for (const [high, countBelow] of buckets) {
    if (countBelow >= rank) {
      if (high === Infinity) return low;
      return low + ((high - low) * (rank - below)) / (countBelow - below || 1);
    }
    [low, below] = [high, countBelow];
  }
  return low;
}
