// Whether good images of a product move away from those taught, channel by channel over time.
import { ask } from "./api.js";
import { series } from "./charts.js";
import { el, errorPlace, showError } from "./dom.js";
import { decimal } from "./format.js";
import { said } from "./sentences.js";
import { named, t } from "./words.js";

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
  const drawn = (channels ?? []).filter(({ points }) => points.length);
  if (!drawn.length) return [...parts, el("p", { class: "soft", text: t("drift.nothing") })];
  return [...parts, el("div", { class: "charts" }, drawn.map(chart)), el("p", { class: "soft", text: t("drift.legend") })];
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
