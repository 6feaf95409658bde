// An inspected picture with its heat map over it, as strongly as a slider says, and the scale of its colours.
import { fetchBlob } from "./api.js";
import { el, remember, remembered, svg } from "./dom.js";
import { decimal, percent } from "./format.js";
import { show } from "./pictures.js";
import { session } from "./session.js";
import { t } from "./words.js";

const SIDES = [512, 1024]; // pixels; the station keeps no larger copies
const STEP = 10;
const USUAL = 60;
const GRACE = 150; // milliseconds for which the picture before stands until the new one is there

let opacity = Number(remembered("opacity", USUAL));

/** A viewer: `.element`, `.display(inspection)`, `.highlight(index)`, `.fade(±1)`, `.toggle()`. */
export class Viewer {
  constructor() {
    this.photo = el("img", { class: "photo", alt: "" });
    this.map = el("img", { class: "map", alt: "" });
    this.outlines = svg("svg", { class: "outlines", "aria-hidden": "true", preserveAspectRatio: "none" });
    this.note = el("p", { class: "stage-note", hidden: true });
    this.frame = el("div", { class: "frame" }, this.photo, this.map, this.outlines);
    this.stage = el("div", { class: "stage" }, this.frame, this.note);
    this.slider = el("input", {
      type: "range", class: "heat-slider", min: 0, max: 100, step: STEP / 2, value: opacity,
      "aria-label": t("heat.opacity"), on: { input: () => this.set(Number(this.slider.value)) },
    });
    this.said = el("output", { class: "heat-said" });
    this.scale = scaleBar();
    const row = el("label", { class: "heat-row" }, el("span", { text: t("heat.map") }), this.slider, this.said);
    this.element = el("figure", { class: "viewer" }, this.stage,
      el("figcaption", { class: "heat" }, row, this.scale.element));
    this.before = opacity || USUAL;
    this.wanted = null; // the inspection asked for last: an earlier one that arrives later is not shown
    this.drawn = null; // the one whose picture stands there
    this.stale = null; // timer of the picture before
    this.set(opacity);
  }

  set(percentage) {
    opacity = Math.min(100, Math.max(0, percentage));
    if (opacity) this.before = opacity;
    this.slider.value = opacity;
    this.slider.setAttribute("aria-valuetext", percent(opacity / 100));
    this.said.textContent = percent(opacity / 100);
    this.stage.style.setProperty("--heat", opacity / 100);
    remember("opacity", opacity);
  }

  fade(steps) {
    this.set(opacity + steps * STEP);
  }

  toggle() {
    this.set(opacity ? 0 : this.before);
  }

  async display(inspection) {
    this.wanted = inspection.id;
    clearTimeout(this.stale);
    if (this.drawn !== inspection.id) this.stale = setTimeout(() => this.blank(), GRACE);
    this.scale.at(inspection.map_threshold);
    if (inspection.recorded === false) return this.nothing(t("picture.unrecorded"));
    const side = SIDES.find((size) => size >= this.stage.clientWidth * devicePixelRatio) ?? SIDES.at(-1);
    const path = `inspections/${inspection.id}`;
    const [photo, map] = await Promise.allSettled([
      fetchBlob(`${path}/image?side=${side}`), fetchBlob(`${path}/map?side=${side}`),
    ]);
    if (this.wanted !== inspection.id) return;
    const [height, width] = inspection.image_size;
    this.frame.style.setProperty("--ratio", width / height);
    this.photo.alt = t("picture.of", { source: inspection.source });
    if (photo.status === "rejected") {
      return this.nothing(photo.reason.status === 404 ? t("picture.gone") : photo.reason.message);
    }
    this.map.hidden = map.status === "rejected";
    await Promise.allSettled([show(this.photo, photo.value), map.value && show(this.map, map.value)]);
    if (this.wanted !== inspection.id) return;
    clearTimeout(this.stale);
    this.drawn = inspection.id;
    this.note.hidden = true;
    this.stage.classList.remove("empty");
    this.outline(inspection);
  }

  /** Takes the picture away: it is of another part than the one in question. */
  blank() {
    clearTimeout(this.stale);
    this.drawn = null;
    this.note.hidden = true;
    this.stage.classList.add("empty");
  }

  /** The same for good: not even one that is on its way is shown. */
  clear() {
    this.wanted = null;
    this.blank();
  }

  /** Says why there is no picture. */
  nothing(sentence) {
    this.blank();
    this.note.textContent = sentence;
    this.note.hidden = false;
  }

  /** The borders of what is conspicuous, in the picture's own pixels. */
  outline({ regions, known, image_size: [height, width] }) {
    this.outlines.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.outlines.replaceChildren(
      ...(known ? (regions ?? []) : []).map((region) =>
        svg("g", {}, ...["casing", "line"].map((name) =>
          svg("path", { class: name, d: region.contours.map(closed).join("") })))),
    );
  }

  highlight(index) {
    [...this.outlines.children].forEach((group, at) => {
      group.classList.toggle("chosen", at === index);
      group.classList.toggle("other", index !== null && at !== index);
    });
  }
}

function closed(points) {
  return `M${points.map(([x, y]) => `${x} ${y}`).join("L")}Z`;
}

/** The colours of all heat maps and what they mean; `.at(threshold)` puts the product's numbers to them. */
function scaleBar() {
  const stops = session.scale.stops.map(({ at, colour }) => `${colour} ${100 * at}%`).join(",");
  const bar = el("div", { class: "scale-bar", "aria-hidden": "true" });
  bar.style.backgroundImage = `linear-gradient(to right,${stops})`;
  const values = [0, 1, 2].map(() => el("b"));
  const meanings = ["heat.typical", "heat.place", "heat.twice"];
  const marks = values.map((value, at) => el("span", {}, el("span", { text: t(meanings[at]) }), " ", value));
  return {
    element: el("div", { class: "scale", title: t("heat.same") }, bar, el("div", { class: "scale-marks" }, marks)),
    at(threshold) {
      const low = threshold > 0 ? 0 : threshold - 1;
      [low, threshold, 2 * threshold - low].forEach((value, at) => (values[at].textContent = decimal(value, 1)));
    },
  };
}
