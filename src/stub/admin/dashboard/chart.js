// Curves of the last minutes, in SVG. They move on with every sample, unless the system asks for less motion.

import { element, setText, svg } from "./dom.js";

const MARGIN = { left: 70, right: 12, top: 12, bottom: 24 };
const STEPS = 4;
const stillness = matchMedia("(prefers-reduced-motion: reduce)");

/**
 * A chart of the fields of a series. `lines` are `{ field, label, tone, area }`; `format` writes a value for people.
 * The legend shows the latest values. A `binary` axis has round numbers of KiB, others of tens.
 */
export class Chart {
  #lines;
  #format;
  #binary;
  #title;
  #frame = svg("g", { class: "frame" });
  #plot = svg("g", { class: "plot" });
  #cursor = svg("line", { class: "cursor", visibility: "hidden" });
  #svg;
  #legend = [];
  #tip = element("p", { class: "tip", hidden: true });
  #series = null;
  #until = null;
  #index = null;
  #size = { width: 400, height: 200 };
  #clip = `clip-${Math.random().toString(36).slice(2)}`;

  constructor({ title, lines, format, binary = false }) {
    [this.#title, this.#lines, this.#format, this.#binary] = [title, lines, format, binary];
    const clip = svg("clipPath", { id: this.#clip }, svg("rect", { class: "clip" }));
    const clipped = svg("g", { "clip-path": `url(#${this.#clip})` }, this.#plot);
    this.#svg = svg("svg", { role: "img", tabindex: "0", "aria-label": title }, clip, this.#frame, clipped, this.#cursor);
    const legend = element("ul", { class: "legend" });
    for (const line of lines) {
      const value = element("b", {}, "–");
      this.#legend.push(value);
      legend.append(element("li", { class: `tone-${line.tone}` }, element("span", {}, line.label), value));
    }
    const canvas = element("div", { class: "canvas" }, this.#svg, this.#tip);
    this.node = element("section", { class: "card chart" }, element("header", {}, element("h2", {}, title), legend), canvas);
    this.#svg.addEventListener("pointermove", (event) => this.#point(event));
    this.#svg.addEventListener("pointerleave", () => this.#pointAt(null));
    this.#svg.addEventListener("blur", () => this.#pointAt(null));
    this.#svg.addEventListener("keydown", (event) => this.#step(event));
    new ResizeObserver(([entry]) => {
      this.#size = { width: Math.max(entry.contentRect.width, 120), height: Math.max(entry.contentRect.height, 80) };
      this.#draw();
    }).observe(canvas);
  }

  /** Shows a series. */
  update(series) {
    const moved = this.#until !== null && series.until !== this.#until;
    [this.#series, this.#until] = [series, series.until];
    this.#draw();
    this.#lines.forEach((line, position) => {
      const latest = series[line.field].at(-1);
      setText(this.#legend[position], latest === null || latest === undefined ? "–" : this.#format(latest));
    });
    if (moved && !stillness.matches) {
      const step = this.#x(1) - this.#x(0);
      this.#plot.animate([{ transform: `translateX(${step}px)` }, { transform: "none" }], { duration: series.intervalMs / 2, easing: "ease-out" });
    }
  }

  get #count() {
    return Math.max(this.#series?.requests.length ?? 0, 30);
  }

  // Samples stand at the right: the latest is always at the edge.
  #x(index) {
    const { width } = this.#size;
    const missing = this.#count - (this.#series?.requests.length ?? 0);
    return MARGIN.left + ((index + missing) / (this.#count - 1)) * (width - MARGIN.left - MARGIN.right);
  }

  #draw() {
    if (!this.#series) return;
    const { width, height } = this.#size;
    const bottom = height - MARGIN.bottom;
    const top = this.#ceiling();
    const y = (value) => bottom - (value / top) * (bottom - MARGIN.top);
    const clip = this.#svg.querySelector(".clip");
    for (const [name, value] of Object.entries({ x: MARGIN.left, y: 0, width: width - MARGIN.left - MARGIN.right + 4, height })) {
      clip.setAttribute(name, value);
    }
    this.#frame.replaceChildren(...this.#grid(width, bottom, top, y));
    this.#plot.replaceChildren(...this.#lines.flatMap((line) => this.#curve(line, y, bottom)));
    if (this.#index !== null) this.#pointAt(this.#index);
  }

  #grid(width, bottom, top, y) {
    const parts = [];
    for (let step = 0; step <= STEPS; step += 1) {
      const value = (top / STEPS) * step;
      parts.push(svg("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }));
      parts.push(svg("text", { class: "tick", x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, this.#format(value)));
    }
    const minutes = (this.#count * this.#series.intervalMs) / 60000;
    for (const part of [0, 0.5, 1]) {
      const ago = minutes * (1 - part);
      const text = part === 1 ? "now" : `−${ago < 2 ? `${Math.round(ago * 60)} s` : `${Math.round(ago)} min`}`;
      const x = MARGIN.left + part * (width - MARGIN.left - MARGIN.right);
      parts.push(svg("text", { class: "tick", x, y: bottom + 17, "text-anchor": ["start", "middle", "end"][part * 2] }, text));
    }
    return parts;
  }

  #curve(line, y, bottom) {
    const values = this.#series[line.field].map((value, index) => [value, this.#x(index).toFixed(1)]);
    return stretches(values).flatMap((known) => {
      const points = known.map(([value, x]) => `${x},${y(value).toFixed(1)}`);
      // A stretch of one point is a dot.
      const curve = svg("path", { class: `line tone-${line.tone}`, d: `M${points[0]}L${points.join("L")}` });
      if (!line.area) return [curve];
      const area = `M${known[0][1]},${bottom}L${points.join("L")}L${known.at(-1)[1]},${bottom}Z`;
      return [svg("path", { class: `area tone-${line.tone}`, d: area }), curve];
    });
  }

  // The first round number above everything that is shown.
  #ceiling() {
    const highest = Math.max(0, ...this.#lines.flatMap((line) => this.#series[line.field]).filter((value) => value !== null));
    if (highest <= 0) return this.#binary ? 1024 : STEPS;
    const power = this.#binary ? 2 ** Math.floor(Math.log2(highest)) : 10 ** Math.floor(Math.log10(highest));
    return power * [1, 2, 4, 8, 16].find((round) => round * power >= highest * 1.05);
  }

  #point(event) {
    const x = event.clientX - this.#svg.getBoundingClientRect().left;
    const step = this.#x(1) - this.#x(0);
    this.#pointAt(Math.round((x - this.#x(0)) / step));
  }

  #step(event) {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -15, PageDown: 15 }[event.key];
    if (step === undefined || !this.#series) return;
    event.preventDefault();
    this.#pointAt((this.#index ?? this.#series.requests.length) + step);
  }

  #pointAt(index) {
    const count = this.#series?.requests.length ?? 0;
    this.#index = index === null || count === 0 ? null : Math.min(Math.max(index, 0), count - 1);
    this.#tip.hidden = this.#index === null;
    this.#cursor.setAttribute("visibility", this.#index === null ? "hidden" : "visible");
    if (this.#index === null) return;
    const { width, height } = this.#size;
    const x = this.#x(this.#index);
    for (const [name, value] of Object.entries({ x1: x, x2: x, y1: MARGIN.top, y2: height - MARGIN.bottom })) {
      this.#cursor.setAttribute(name, value);
    }
    const values = this.#lines.map((line) => {
      const value = this.#series[line.field][this.#index];
      return `${line.label} ${value === null ? "–" : this.#format(value)}`;
    });
    const ago = ((count - 1 - this.#index) * this.#series.intervalMs) / 1000;
    setText(this.#tip, `${ago === 0 ? "now" : `${ago} s ago`} · ${values.join(" · ")}`);
    this.#tip.classList.toggle("left", x > width / 2);
    this.#svg.setAttribute("aria-label", `${this.#title}: ${this.#tip.textContent}`);
  }
}

// Where nothing was measured, nothing is drawn.
function stretches(values) {
  const all = [[]];
  for (const pair of values) {
    if (pair[0] !== null) all.at(-1).push(pair);
    else if (all.at(-1).length > 0) all.push([]);
  }
  return all.filter((stretch) => stretch.length > 0);
}

/** A small curve without axes. */
export class Spark {
  #line = svg("path", { class: "line" });
  #area = svg("path", { class: "area" });

  constructor(tone) {
    this.node = svg("svg", { class: `spark tone-${tone}`, viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" }, this.#area, this.#line);
  }

  /** Shows the latest of these values. */
  update(values) {
    const shown = values.slice(-60).map((value) => value ?? 0);
    const highest = Math.max(...shown, 1e-9);
    const points = shown.map((value, index) => `${(100 - (shown.length - 1 - index) * (100 / 59)).toFixed(2)},${(28 - (value / highest) * 25).toFixed(2)}`);
    const path = points.length ? `M${points.join("L")}` : "";
    this.#line.setAttribute("d", path);
    this.#area.setAttribute("d", path ? `${path}L100,30L${points[0].split(",")[0]},30Z` : "");
  }
}
