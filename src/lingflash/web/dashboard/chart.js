// A chart of the last hour: uPlot draws, this gives it colours, size and words.
import { Component, createRef, html } from "../lib/html.js";

const HEIGHT = 150;
const SHORTEST_S = 60;
const dark = matchMedia("(prefers-color-scheme: dark)");

/**
 * Lines over time.
 *
 * points: with `time` and a number or null under each key.
 * lines: [{key, label}], drawn in the order of the colours --line-1, --line-2.
 * format: number to text.
 */
export class Chart extends Component {
  box = createRef();
  #rebuild = () => this.build();

  componentDidMount() {
    this.build();
    this.sizing = new ResizeObserver(() => {
      const { clientWidth: width } = this.box.current;
      if (width && width !== this.plot.width) this.plot.setSize({ width, height: HEIGHT });
    });
    this.sizing.observe(this.box.current);
    dark.addEventListener("change", this.#rebuild);
  }

  componentWillUnmount() {
    this.sizing.disconnect();
    dark.removeEventListener("change", this.#rebuild);
    this.plot.destroy();
  }

  componentDidUpdate() {
    this.plot.setData(this.data());
  }

  data() {
    const { points, lines } = this.props;
    return [points.map(({ time }) => time), ...lines.map(({ key }) => points.map((each) => each[key]))];
  }

  /** From the first point to the last, a minute at least: uPlot makes a day of one point. */
  span() {
    const { points } = this.props;
    const end = points.at(-1)?.time ?? SHORTEST_S;
    return [Math.min(points[0]?.time ?? 0, end - SHORTEST_S), end];
  }

  build() {
    this.plot?.destroy();
    // A canvas knows no light-dark(): the browser works the colour out on an element.
    const probe = this.box.current.appendChild(document.createElement("span"));
    const color = (name) => {
      probe.style.color = `var(${name})`;
      return getComputedStyle(probe).color;
    };
    const { lines, format } = this.props;
    const grid = { stroke: color("--chart-grid"), width: 1 };
    const axis = { stroke: color("--chart-text"), grid, ticks: { show: false } };
    const options = {
      width: this.box.current.clientWidth || 300,
      height: HEIGHT,
      legend: { show: false },
      cursor: { sync: { key: "dashboard" }, drag: { x: false, y: false } },
      scales: {
        x: { range: () => this.span() },
        y: { range: (_plot, _low, high) => [0, high > 0 ? high * 1.15 : 1] },
      },
      axes: [
        { ...axis, values: "{HH}:{mm}:{ss}", space: 80, size: 28 },
        { ...axis, size: 72, values: (_plot, values) => values.map((value) => format(value)) },
      ],
      series: [
        {},
        ...lines.map(({ label }, i) => ({
          label,
          stroke: color(`--line-${i + 1}`),
          width: 2,
          dash: i ? [6, 3] : undefined,
          points: { show: false },
        })),
      ],
    };
    probe.remove();
    this.plot = new window.uPlot(options, this.data(), this.box.current);
  }

  render({ title, note, lines, points, format }) {
    const last = points.at(-1);
    const told = lines.map(({ key, label }) => {
      const value = last?.[key];
      return [label, value === null || value === undefined ? "–" : format(value)];
    });
    return html`<figure class="chart">
      <figcaption>
        <h2>${title}</h2>
        <dl>
          ${told.map(
            ([label, value], i) =>
              html`<div><dt class=${`line-${i + 1}`}>${label}</dt><dd>${value}</dd></div>`,
          )}
        </dl>
      </figcaption>
      <div
        ref=${this.box}
        class="plot"
        role="img"
        aria-label=${`${title}: ${told.map((each) => each.join(" ")).join(", ")}`}
      ></div>
      ${note && html`<p class="note">${note}</p>`}
    </figure>`;
  }
}
