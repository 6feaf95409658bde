// Two small drawings: threshold over false-alarm rate, and a figure over time. Sizes are in the drawing's own units.
import { svg } from "./dom.js";
import { decimal, percent, tick } from "./format.js";
import { t } from "./words.js";

const EDGE = { left: 46, right: 14, top: 14, bottom: 34 };

function line(points) {
  return points.map(([x, y], at) => `${at ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function spread(low, high) {
  return high > low ? [low, high] : [low - 0.5, high + 0.5];
}

/** About `count` round values between `low` and `high`. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((one) => one >= rough);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(value);
  return found;
}

/** How a product's threshold follows from the false-alarm rate: `.element`, `.choose(point or null)`. */
export class Curve {
  constructor(curve, current, { width = 640, height = 260 } = {}) {
    const rates = curve.map((point) => Math.log10(point.false_alarm_rate));
    const values = [...curve.map((point) => point.threshold), current.threshold];
    const [left, right] = spread(Math.min(...rates), Math.max(...rates));
    const [low, high] = spread(Math.min(...values), Math.max(...values));
    const pad = 0.08 * (high - low);
    const [bottom, top] = [low - pad, high + pad];
    const inner = { w: width - EDGE.left - EDGE.right, h: height - EDGE.top - EDGE.bottom };
    this.x = (share) => EDGE.left + ((Math.log10(share) - left) / (right - left)) * inner.w;
    this.y = (value) => EDGE.top + ((top - value) / (top - bottom)) * inner.h;
    this.ends = [EDGE.left, width - EDGE.right];
    const floor = (this.floor = height - EDGE.bottom);
    const decades = ticks(left, right, 4).filter(Number.isInteger).map((power) => 10 ** power);
    this.chosen = svg("g", { class: "chosen-mark" });
    this.element = svg("svg", { class: "chart", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": t("curve.label") },
      ticks(bottom, top, 4).map((value) => svg("g", {},
        svg("line", { class: "grid", x1: EDGE.left, x2: this.ends[1], y1: this.y(value), y2: this.y(value) }),
        svg("text", { class: "tick end", x: EDGE.left - 8, y: this.y(value) + 4, text: decimal(value, 1) }))),
      decades.map((share) => svg("g", {},
        svg("line", { class: "grid", x1: this.x(share), x2: this.x(share), y1: EDGE.top, y2: floor }),
        svg("text", { class: "tick middle", x: this.x(share), y: floor + 18, text: percent(share) }))),
      svg("path", { class: "curve", d: line(curve.map((p) => [this.x(p.false_alarm_rate), this.y(p.threshold)])) }),
      this.current(current), this.chosen);
  }

  /** The threshold in force: a ring on the curve, a dashed line where it was set by hand. */
  current({ threshold, false_alarm_rate: share }) {
    const y = this.y(threshold);
    if (share === null) return svg("line", { class: "in-force", x1: this.ends[0], x2: this.ends[1], y1: y, y2: y });
    return svg("circle", { class: "in-force", cx: this.x(share), cy: y, r: 7 });
  }

  /** Marks another point; null: none but the one in force. */
  choose(point) {
    if (point === null) return this.chosen.replaceChildren();
    const { threshold, false_alarm_rate: share } = point;
    const [x, y] = [this.x(share), this.y(threshold)];
    return this.chosen.replaceChildren(
      svg("path", { class: "drop", d: `M${this.ends[0]} ${y}H${x}V${this.floor}` }),
      svg("circle", { cx: x, cy: y, r: 5 }));
  }
}

/** What a drawing spans: the data, but no farther from the band than that is wide, or one odd image hides the rest. */
function reach(values, band) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  if (band === null || band[1] <= band[0]) return spread(Math.min(least, band?.[0] ?? least), Math.max(most, band?.[1] ?? most));
  const [low, high] = band;
  const wide = high - low;
  return [Math.max(low - wide, Math.min(least, low)), Math.min(high + wide, Math.max(most, high))];
}

/** One figure over time with the band that was taught. `points`: [{time, value}]. */
export function series({ points, low, high }, label, { width = 420, height = 130 } = {}) {
  const banded = low !== null && low !== undefined && high !== null && high !== undefined;
  const [least, most] = reach(points.map(({ value }) => value), banded ? [low, high] : null);
  const pad = 0.12 * (most - least);
  const [left, right, top, floor] = [50, width - 8, 10, height - 24];
  const within = (value) => Math.min(most, Math.max(least, value));
  const y = (value) => top + ((most + pad - within(value)) / (most - least + 2 * pad)) * (floor - top);
  const x = (at) => (points.length > 1 ? left + (at / (points.length - 1)) * (right - left) : (left + right) / 2);
  const digits = most - least < 0.2 ? 3 : most - least < 2 ? 2 : most - least < 20 ? 1 : 0;
  const outside = (value) => banded && (value < low || value > high);
  return svg("svg", { class: "chart series", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label },
    banded && svg("rect", { class: "taught", x: left, width: right - left, y: y(high), height: Math.max(1, y(low) - y(high)) }),
    [...new Set(banded ? [low, high] : [least, most])].map((value) =>
      svg("text", { class: "tick end", x: left - 6, y: y(value) + 4, text: decimal(value, digits) })),
    svg("path", { class: "curve", d: line(points.map(({ value }, at) => [x(at), y(value)])) }),
    points.map(({ value }, at) => outside(value) && svg("path", { class: "outside", d: `M${x(at) - 3.5} ${y(value)}l3.5-3.5 3.5 3.5-3.5 3.5z` })),
    points.length > 0 && [
      svg("text", { class: "tick", x: left, y: height - 6, text: tick(points[0].time) }),
      points.length > 1 && svg("text", { class: "tick end", x: right, y: height - 6, text: tick(points.at(-1).time) })]);
}
