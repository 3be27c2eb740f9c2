// Markup in template strings, and components that follow stores. There is no build step.
import { Component, h } from "../vendor/preact.mjs";
import htm from "../vendor/htm.mjs";

export { Component, createRef, render } from "../vendor/preact.mjs";
export const html = htm.bind(h);

/** Something that changes, and tells whoever watches it. */
export class Store {
  #watchers = new Set();

  watch(told) {
    this.#watchers.add(told);
    return () => this.#watchers.delete(told);
  }

  changed() {
    for (const told of [...this.#watchers]) told(this);
  }
}

/** A component that is drawn anew when a store of `stores()` changes. */
export class View extends Component {
  #watched = new Map();

  stores() {
    return [];
  }

  #watch(stores) {
    for (const [store, stop] of this.#watched) {
      if (stores.includes(store)) continue;
      stop();
      this.#watched.delete(store);
    }
    for (const store of stores) {
      if (!this.#watched.has(store)) this.#watched.set(store, store.watch(() => this.setState({})));
    }
  }

  componentDidMount() {
    this.#watch(this.stores());
  }

  componentDidUpdate() {
    this.#watch(this.stores());
  }

  componentWillUnmount() {
    this.#watch([]);
  }
}

const whole = new Intl.NumberFormat("en");

export function count(number) {
  return whole.format(Math.round(number));
}

/** Seconds as people read them. */
export function duration(seconds) {
  const rounded = (number) => Number(number.toPrecision(3));
  return seconds < 0.9995 ? `${rounded(seconds * 1e3)} ms` : `${rounded(seconds)} s`;
}

export function bytes(number) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${number.toFixed(unit && number < 100 ? 1 : 0)} ${units[unit]}`;
}

const money = new Intl.NumberFormat("en", {
  style: "currency",
  currency: "USD",
  maximumSignificantDigits: 4,
});

/** Dollars, exact enough for what one answer costs; a text holds them as well as a number. */
export function dollars(amount) {
  return money.format(Number(amount));
}

/** A time of the server's, here. */
export function moment(iso) {
  return new Date(iso).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" });
}

export function percent(part) {
  return `${(part * 100).toFixed(part > 0 && part < 0.1 ? 1 : 0)} %`;
}
