// The threshold of a product: a slider over false-alarm rates that says what each would mean before it is applied.
import { ask } from "./api.js";
import { announce, button, clearError, el, errorPlace, showError } from "./dom.js";
import { Curve } from "./charts.js";
import { outOfReach, rate, thresholdOf } from "./format.js";
import { look, may } from "./session.js";
import { t } from "./words.js";

const CALM = 250; // milliseconds a slider rests before the service is asked

export function thresholdSection(product, path, { signal, changed }) {
  const { curve, threshold, false_alarm_rate: share } = product;
  if (!curve?.length) return null;
  const points = [...curve].sort((a, b) => a.false_alarm_rate - b.false_alarm_rate);
  const start = nearest(points, product);
  const drawn = points.filter((point) => !outOfReach(point.threshold));
  const chart = outOfReach(threshold) || drawn.length < 2 ? null : new Curve(drawn, product);
  const slider = el("input", { type: "range", id: "rate", min: 0, max: points.length - 1, step: 1, value: start });
  const words = el("output", { class: "chosen-rate", htmlFor: "rate" });
  const past = el("p", { class: "past", role: "status" });
  const place = errorPlace();
  const apply = button(t("threshold.apply"), async () => {
    const body = { false_alarm_rate: chosen().false_alarm_rate, version: product.version };
    let refused = null;
    try {
      await ask(`${path}/threshold`, { method: "PUT", body, signal });
      announce(t("threshold.applied"));
    } catch (error) {
      if (error.code !== "other_version") throw error;
      refused = error; // this curve is of a version that is no longer in use: the new one is shown, and why
    }
    await look();
    await changed();
    const shown = document.querySelector(".threshold .error");
    if (refused && shown) showError(shown, refused);
    document.getElementById("rate")?.focus();
  }, { class: "primary", errorsIn: place });
  const back = button(t("threshold.back"), () => ((slider.value = start), draw()));
  const chosen = () => points[Number(slider.value)];

  let timer;
  let asked = 0;
  async function preview() {
    const mine = (asked += 1);
    const wanted = chosen().false_alarm_rate;
    try {
      const answer = await ask(`${path}/threshold?false_alarm_rate=${wanted}`, { signal });
      if (mine !== asked) return;
      clearError(place);
      past.textContent = pastWords(answer.past);
    } catch (error) {
      if (error.name !== "AbortError" && mine === asked) showError(place, error);
    }
  }

  function draw() {
    const point = chosen();
    const same = Number(slider.value) === start;
    const sentence = rate(same ? share : point.false_alarm_rate);
    words.replaceChildren(el("b", { text: thresholdOf(same ? threshold : point.threshold) }), " ", el("span", { text: sentence }));
    slider.setAttribute("aria-valuetext", `${sentence}, ${t("heat.threshold")} ${thresholdOf(same ? threshold : point.threshold)}`);
    chart?.choose(same || outOfReach(point.threshold) ? null : point);
    apply.disabled = back.disabled = same;
    clearTimeout(timer);
    past.textContent = same ? t("threshold.in_force") : " ";
    asked += 1;
    if (!same) timer = setTimeout(preview, CALM);
  }

  slider.addEventListener("input", draw);
  signal.addEventListener("abort", () => clearTimeout(timer));
  draw();
  return el("section", { class: "threshold" }, el("h2", { text: t("threshold.heading") }),
    el("div", { class: "split" },
      el("div", { class: "controls" },
        words,
        el("label", { htmlFor: "rate", text: t("threshold.slider") }), slider,
        el("div", { class: "slider-ends" }, el("span", { text: t("threshold.fewer") }), el("span", { text: t("threshold.more") })),
        past, may("teach") && el("div", { class: "row" }, apply, back), place),
      chart && el("figure", {}, chart.element, el("figcaption", { text: t("curve.caption") }))));
}

/** The point of the curve for the threshold in force; the nearest threshold where that was set by hand. */
function nearest(points, { threshold, false_alarm_rate: share }) {
  const far = share === null
    ? (point) => Math.abs(point.threshold - threshold)
    : (point) => Math.abs(Math.log(point.false_alarm_rate / share));
  return points.reduce((best, point, at) => (far(point) < far(points[best]) ? at : best), 0);
}

function pastWords({ inspections, to_good: good, to_defective: defective }) {
  if (!inspections) return t("threshold.no_past");
  if (!good && !defective) return t("threshold.past_none", { n: inspections });
  return t("threshold.past", { n: inspections, good, bad: defective });
}
