// Whether good images of a product move away from those taught, channel by channel over time.
import { ask } from "./api.js";
import { series } from "./charts.js";
import { el, errorPlace, showError } from "./dom.js";
import { decimal } from "./format.js";
import { said } from "./sentences.js";
import { named, t } from "./words.js";

const FIRST = 6; // charts shown at once, those that moved most
const RECENT = 10;

export function driftSection(path, signal) {
  const place = errorPlace();
  const body = el("div", { class: "drift-body" }, el("p", { class: "soft", text: t("loading") }));
  const section = el("section", { class: "drift" }, el("h2", { text: t("drift.heading") }), place, body);
  ask(`${path}/drift`, { signal })
    .then((drift) => body.replaceChildren(...content(drift)))
    .catch((error) => {
      if (error.name === "AbortError") return;
      body.replaceChildren();
      showError(place, error);
    });
  return section;
}

function content({ state, sentences, series: channels }) {
  const parts = [
    el("p", { class: `drift-state ${state}` }, el("b", { text: named("drift", state) })),
    ...(sentences ?? []).map((sentence) => said(sentence, { tag: "p" }))];
  const drawn = (channels ?? []).filter(({ points }) => points.length).sort((one, other) => away(other) - away(one));
  if (!drawn.length) return [...parts, el("p", { class: "soft", text: t("drift.nothing") })];
  const rest = drawn.slice(FIRST);
  return [...parts,
    el("div", { class: "charts" }, drawn.slice(0, FIRST).map(chart)), el("p", { class: "soft", text: t("drift.legend") }),
    rest.length ? el("details", {}, el("summary", { text: t("drift.rest", { n: rest.length }) }), el("div", { class: "charts" }, rest.map(chart))) : ""];
}

/** How far the last images lie from the middle of what was taught, in halves of its range. */
function away({ points, low, high }) {
  if (low === null || low === undefined || high <= low) return 0;
  const last = points.slice(-RECENT).map(({ value }) => value).sort((a, b) => a - b);
  return Math.abs(last[Math.floor(last.length / 2)] - (low + high) / 2) / ((high - low) / 2);
}

function chart(channel) {
  const name = named("channel", channel.channel);
  const last = channel.points.at(-1).value;
  const banded = channel.low !== null && channel.low !== undefined;
  const words = banded
    ? t("drift.chart", { name, last: decimal(last), low: decimal(channel.low), high: decimal(channel.high) })
    : t("drift.chart_bare", { name, last: decimal(last) });
  return el("figure", { class: "small-chart" }, el("figcaption", { text: name }), series(channel, words));
}
