// One inspection: the band that is read from two metres, the picture, the figures and the marks.
import { announce, el } from "./dom.js";
import { chance, decimal, moment, placeOf, status, verdict, whole } from "./format.js";
import { shape } from "./icons.js";
import { markPanel } from "./marks.js";
import { said } from "./sentences.js";
import { t } from "./words.js";
import { Viewer } from "./viewer.js";

const REGIONS_SHOWN = 5;
const PATIENT = 400; // milliseconds for which a verdict stands while the next image is on its way
const FLASH = 400; // milliseconds between two flashes at least

/** `.element`, `.viewer`, `.display(inspection)`, `.failed(item)`, `.working()`, `.away()`, `.ready()`. */
export class Result {
  /** `changed(inspection)` is told of a mark that was set or taken back. */
  constructor({ changed = () => {}, signal, ways = [], strip = null }) {
    this.changed = changed;
    this.signal = signal;
    this.band = el("section", { class: "band", "aria-label": t("verdict.label") });
    this.facts = el("section", { class: "facts", "aria-label": t("facts.label") });
    this.viewer = new Viewer();
    this.view = el("div", { class: "view" }, ways, this.viewer.element);
    this.element = el("div", { class: "result" }, this.band, this.view, this.facts, strip);
    this.timer = null; // until the band is neutral
    this.below = ""; // what it says then
    this.flashed = 0;
  }

  get isAway() {
    return this.band.dataset.status === "lost";
  }

  loud(name, word, below, lang) {
    this.settled();
    const waits = name === "working" || name === "lost";
    this.element.classList.toggle("waiting", waits);
    if (waits || name === "ready" || name === "failed") this.viewer.clear();
    if (name === "working") this.band.setAttribute("aria-busy", "true");
    else this.band.removeAttribute("aria-busy");
    this.band.dataset.status = name;
    this.element.dataset.status = name;
    this.band.replaceChildren(
      shape(name, "big"),
      el("p", { class: "word", text: word, vars: { "--wide": ems(word), "--longest": Math.max(...word.split(" ").map(ems)) } }),
      el("p", { class: "below", lang }, below),
    );
  }

  ready(sentence, word = t("verdict.ready")) {
    this.loud("ready", word, sentence);
    this.facts.replaceChildren(el("p", { class: "soft", text: t("facts.none") }));
    this.element.classList.add("bare");
  }

  /** An image is on its way, named by `below`: unless its verdict comes at once, the one before gives way. */
  working(below, { patience = PATIENT } = {}) {
    if (this.isAway && patience) return; // until somebody answers again
    this.below = below;
    if (this.band.dataset.status === "working") this.band.querySelector(".below").textContent = below;
    else this.timer ??= setTimeout(() => this.loud("working", t("verdict.working"), this.below), patience);
  }

  /** Nothing is on its way any more. */
  settled() {
    clearTimeout(this.timer);
    this.timer = null;
  }

  /** Nobody judges anything at the moment, for the reason in `sentence`. */
  away(word, sentence, lang) {
    if (!this.isAway) announce(`${word}. ${sentence}`, { urgent: true });
    this.loud("lost", word, sentence, lang);
  }

  failed(item, { aloud = true, earlier = false } = {}) {
    const { source, error } = item;
    this.element.classList.add("bare");
    this.loud("failed", t("verdict.failed"), whichWords(item, earlier));
    this.facts.replaceChildren(el("p", { class: "error", text: error.message, lang: error.lang }));
    if (!aloud) return;
    this.flash();
    announce(`${t("verdict.failed")}. ${source}. ${error.message}`, { urgent: true });
  }

  async display(inspection, { aloud = true, earlier = false } = {}) {
    this.element.classList.remove("bare");
    const which = whichWords(inspection, earlier);
    this.loud(inspection.status, verdict(inspection.status), [el("span", { text: productWords(inspection) }), which]);
    this.figures(inspection);
    if (aloud) {
      this.flash();
      announce(spokenVerdict(inspection), { urgent: true });
    }
    await this.viewer.display(inspection);
  }

  /** Shows that a verdict is new, also where it reads like the one before. */
  flash() {
    const now = performance.now();
    if (now - this.flashed < FLASH) return; // a screen that flickers is hard to bear
    this.flashed = now;
    this.band.append(el("span", { class: "flash" }));
  }

  figures(inspection) {
    const { task, known } = inspection;
    const name = el("dd", { class: "strong" }, el("a", { href: `#/products/${encodeURIComponent(task)}`, text: task }));
    this.facts.replaceChildren(...[
      scoreBar(inspection),
      known && el("p", { class: "chance", text: chance(inspection.p_value) }),
      said(inspection.reason, { tag: "p", names: "soft" }),
      inspection.recorded !== false && markPanel(inspection, { signal: this.signal, changed: (now) => (this.figures(now), this.changed(now)) }),
      el("dl", { class: "pairs" },
        el("dt", { text: t(known ? "facts.product" : "facts.nearest") }), name,
        el("dt", { text: t("facts.certainty") }), el("dd", {}, certaintyWords(inspection)),
        ...this.regionPairs(inspection),
        el("dt", { text: t("facts.file") }), el("dd", { class: "break", text: inspection.source }),
        el("dt", { text: t("facts.time") }), el("dd", {}, timeOf(inspection)),
        el("dt", { text: t("facts.version") }), el("dd", { text: inspection.version ?? "–" })),
    ].filter(Boolean));
  }

  regionPairs({ regions, known }) {
    if (!known) return []; // all of another product is strange
    const list = regions ?? [];
    const heading = el("dt", { text: t("facts.regions") });
    if (!list.length) return [heading, el("dd", { text: t("facts.no_regions") })];
    const items = list.slice(0, REGIONS_SHOWN).map((region, at) => {
      const [x, y] = region.centre.map((value) => whole(value));
      const text = t("facts.region", { peak: decimal(region.peak, 1), area: whole(region.area), x, y });
      const [on, off] = [() => this.viewer.highlight(at), () => this.viewer.highlight(null)];
      const events = { mouseenter: on, mouseleave: off, focus: on, blur: off };
      return el("li", {}, el("button", { type: "button", class: "region", text, on: events }));
    });
    const more = list.length - REGIONS_SHOWN;
    const rest = more > 0 && el("p", { class: "soft", text: t("facts.more_regions", { n: more }) });
    return [heading, el("dd", {}, el("ol", { class: "regions" }, items), rest)];
  }
}

/** Of which image the band speaks: when it was inspected, and its file. */
function whichWords({ time, source }, earlier) {
  return el("span", { class: "which" }, earlier && el("span", { text: t("verdict.earlier") }),
    el("time", { dateTime: time, text: moment(time) }), el("span", { class: "name", text: source }));
}

function timeOf({ time, latency_ms: latency }) {
  const words = el("time", { dateTime: time, text: moment(time) });
  return [words, el("span", { class: "soft", text: ` · ${t("facts.latency", { n: whole(latency ?? 0) })}` })];
}

/** At most how wide a word is, in ems of a bold font: the largest size at which it fits follows from that. */
function ems(word) {
  return [...word].reduce((sum, letter) => sum + emsOf(letter), 0);
}

function emsOf(letter) {
  if (letter > "\u1100") return 1; // Hangul fills its square
  if (letter === " ") return 0.35;
  if ("MW".includes(letter)) return 1.12;
  return letter === letter.toUpperCase() ? 0.84 : 0.7;
}

/** The product in the band; of an unknown one the nearest, as that is all that can be said. */
function productWords({ known, task }) {
  return known ? task : t("verdict.nearest", { task });
}

export function spokenVerdict(inspection) {
  const scores = { score: decimal(inspection.pred_score), threshold: decimal(inspection.threshold) };
  return `${status(inspection.status)}. ${productWords(inspection)}. ${t("score.said", scores)}`;
}

function certaintyWords({ certainty, known }) {
  if (certainty === null || certainty === undefined) return t("certainty.given");
  const { margin, distance, distance_limit: limit } = certainty;
  const next = margin === null ? t("certainty.only") : t("certainty.margin", { n: decimal(margin, 1) });
  const far = limit === null ? null : t("certainty.distance", { a: decimal(distance, 2), b: decimal(limit, 2) });
  if (!known) return far;
  const details = limit !== null && distance > limit ? ` ${t("certainty.details")}` : "";
  return [next, far && el("span", { class: "soft", text: ` ${far}${details}` })];
}

/** The score on a bar whose middle is the threshold, the same for every image and every product. */
function scoreBar({ pred_score: score, threshold }) {
  const at = 100 * placeOf(score, threshold);
  const words = t("score.said", { score: decimal(score), threshold: decimal(threshold) });
  return el("div", { class: "score", role: "img", "aria-label": words },
    el("div", { class: "score-head" },
      el("span", { text: t("score.score") }), el("b", { class: "score-value", text: decimal(score) })),
    el("div", { class: "score-bar" },
      el("span", { class: "score-fill", vars: { "--at": `${at}%` } }),
      el("span", { class: "score-limit" }),
      el("span", { class: "score-needle", vars: { "--at": `${at}%` } })),
    el("div", { class: "score-foot" },
      el("span", { text: t("heat.typical") }),
      el("span", {}, t("heat.threshold"), " ", el("b", { text: decimal(threshold) })),
      el("span", { text: t("heat.twice") })));
}
