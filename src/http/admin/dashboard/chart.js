// Savings over time: what came from the store upon what was fetched, and the hit ratio, as an SVG that can be pointed at and
// walked through by keys.

import { bytes, many } from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const BARS = 96;
const LEFT = 62;
const RIGHT = 40;
const TOP = 10;
const BOTTOM = 22;

/** A chart in this SVG, which says in `readout` what is pointed at. */
export class Chart {
  #svg;
  #readout;
  #bars = [];
  #cursor = null;
  #chosen = null;

  constructor(svg, readout) {
    this.#svg = svg;
    this.#readout = readout;
    svg.addEventListener("pointermove", (event) => this.#point(event.clientX));
    svg.addEventListener("pointerleave", () => this.#choose(null));
    svg.addEventListener("blur", () => this.#choose(null));
    svg.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!by || this.#bars.length === 0) return;
      event.preventDefault();
      const from = this.#chosen ?? (by < 0 ? this.#bars.length : -1);
      this.#choose(Math.min(this.#bars.length - 1, Math.max(0, from + by)));
    });
    new ResizeObserver(() => this.#draw()).observe(svg);
  }

  /** Shows a history. */
  show({ step_seconds: step, points }) {
    // As few bars as fit, each of so many whole points.
    const each = Math.max(1, Math.ceil(points.length / BARS));
    const bars = [];
    for (let end = points.length; end > 0; end -= each) {
      const part = points.slice(Math.max(0, end - each), end);
      const sum = (field) => part.reduce((total, point) => total + point[field], 0);
      const [served, received] = [sum("served_bytes"), sum("received_bytes")];
      const [requests, hits] = [sum("requests"), sum("hits")];
      const to = Date.parse(part[part.length - 1].at);
      bars.unshift({ from: to - part.length * step * 1000, to, served, received, requests, hits });
    }
    this.#bars = bars;
    this.#draw();
  }

  #draw() {
    const { width, height } = this.#svg.getBoundingClientRect();
    if (width === 0) return;
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#svg.replaceChildren();
    const bars = this.#bars;
    const [inner, depth] = [width - LEFT - RIGHT, height - TOP - BOTTOM];
    // A fresh start does not look like a full day.
    const places = Math.max(bars.length, 30);
    const wide = inner / places;
    const left = (index) => LEFT + (places - bars.length + index) * wide;
    const most = nice(Math.max(1, ...bars.map((bar) => Math.max(bar.served, bar.received))));
    const y = (value) => TOP + depth * (1 - value / most);
    for (const part of [0, 0.5, 1]) {
      const at = TOP + depth * (1 - part);
      this.#add("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at });
      this.#text(bytes(most * part), LEFT - 8, at + 4, "end");
      this.#text(`${part * 100} %`, width - RIGHT + 6, at + 4, "start");
    }
    bars.forEach((bar, index) => {
      const [x, w] = [left(index) + wide * 0.1, Math.max(1, wide * 0.8)];
      const fetched = y(Math.min(bar.received, most));
      this.#add("rect", { class: "fetched", x, y: fetched, width: w, height: TOP + depth - fetched });
      if (bar.served > bar.received) {
        const top = y(bar.served);
        this.#add("rect", { class: "saved", x, y: top, width: w, height: fetched - top });
      }
    });
    // A line through what was asked for; it ends where nothing was.
    let path = "";
    let drawing = false;
    bars.forEach((bar, index) => {
      if (bar.requests === 0) {
        drawing = false;
        return;
      }
      const at = `${(left(index) + wide / 2).toFixed(1)} ${(TOP + depth * (1 - bar.hits / bar.requests)).toFixed(1)}`;
      path += drawing ? `L${at}` : `M${at}h0.1`;
      drawing = true;
    });
    this.#add("path", { class: "ratio", d: path });
    this.#times(bars, left, wide, height);
    this.#cursor = this.#add("rect", { class: "cursor", y: TOP, height: depth, width: wide, visibility: "hidden" });
    this.#say();
  }

  #times(bars, left, wide, height) {
    if (bars.length === 0) return;
    const days = bars[bars.length - 1].to - bars[0].from > 2 * 86_400_000;
    const style = days ? { month: "short", day: "numeric" } : { hour: "2-digit", minute: "2-digit" };
    const apart = Math.max(1, Math.ceil(80 / wide));
    for (let index = bars.length - 1; index >= 0; index -= apart) {
      const x = left(index) + wide;
      if (x < LEFT + 20) break;
      this.#text(new Date(bars[index].to).toLocaleString([], style), x, height - 6, "end");
    }
  }

  #point(clientX) {
    const box = this.#svg.getBoundingClientRect();
    const places = Math.max(this.#bars.length, 30);
    const place = Math.floor((clientX - box.left - LEFT) / ((box.width - LEFT - RIGHT) / places));
    const index = place - (places - this.#bars.length);
    this.#choose(index >= 0 && index < this.#bars.length ? index : null);
  }

  #choose(index) {
    this.#chosen = index;
    this.#say();
  }

  #say() {
    const bars = this.#bars;
    const index = this.#chosen;
    const box = this.#svg.getBoundingClientRect();
    const wide = (box.width - LEFT - RIGHT) / Math.max(bars.length, 30);
    const bar = bars[index];
    this.#cursor?.setAttribute("visibility", bar ? "visible" : "hidden");
    if (bar) {
      this.#cursor.setAttribute("x", LEFT + (Math.max(bars.length, 30) - bars.length + index) * wide);
      const style = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" };
      const [from, to] = [new Date(bar.from).toLocaleString([], style), new Date(bar.to).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" })];
      this.#readout.textContent = `${from} – ${to}: ${said(bar)}`;
      return;
    }
    const sum = (field) => bars.reduce((total, one) => total + one[field], 0);
    const all = { served: sum("served"), received: sum("received"), requests: sum("requests"), hits: sum("hits") };
    this.#readout.textContent = all.served + all.received === 0 ? "Nothing was served yet." : `In all: ${said(all)}`;
  }

  #add(name, attributes) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    this.#svg.append(made);
    return made;
  }

  #text(text, x, y, anchor) {
    this.#add("text", { x, y, "text-anchor": anchor }).textContent = text;
  }
}

function said({ served, received, requests, hits }) {
  const ratio = requests > 0 ? `, ${((100 * hits) / requests).toFixed(1)} % of ${many(requests, "request")} from the store` : "";
  return `${bytes(served)} served, ${bytes(received)} fetched${ratio}`;
}

/** The next whole power of two times 1, 1.25, 1.5 or 2: so that the axis has even figures. */
function nice(value) {
  const power = 2 ** Math.floor(Math.log2(value));
  return [1, 1.25, 1.5, 2].map((factor) => factor * power).find((size) => size >= value) ?? value;
}
