// "False alarm", "missed", "wrong product": what a person says of a verdict, with a way back.
import { ask } from "./api.js";
import { announce, button, el, errorPlace, showError } from "./dom.js";
import { wrongProduct } from "./dialogs.js";
import { t } from "./words.js";

/** The marks that make sense for a status: a good image is no false alarm, a defective one was not missed. */
function kindsFor({ status, known }) {
  const first = status === "good" ? "missed" : "false_alarm";
  return known || status === "drifting" ? [first, "wrong_product"] : ["wrong_product", "false_alarm"];
}

export function markPanel(inspection, { changed, signal }) {
  const place = errorPlace();
  const path = `inspections/${inspection.id}/mark`;
  const set = async (mark) => {
    const now = await ask(path, { method: "PUT", body: mark, signal });
    announce(t("mark.done", { mark: t(`mark.${mark.kind}`) }));
    refocus(() => changed(now));
  };
  const undo = async () => {
    const now = await ask(path, { method: "DELETE", signal });
    announce(t("mark.undone"));
    refocus(() => changed(now ?? { ...inspection, mark: null }));
  };
  const content = inspection.mark
    ? [marked(inspection.mark), button(t("mark.undo"), undo, { class: "mark-undo", errorsIn: place }),
        noteField(inspection, set, place)]
    : kindsFor(inspection).map((kind) => markButton(kind, inspection, set, place));
  const heading = el("h2", { text: t(inspection.mark ? "mark.marked" : "mark.heading") });
  return el("div", { class: "marks" }, heading, el("div", { class: "row" }, content), place);
}

function markButton(kind, inspection, set, place) {
  const act = async () => {
    if (kind !== "wrong_product") return set({ kind });
    const right = await wrongProduct(inspection);
    if (right) await set({ kind, ...right });
  };
  const title = t(`mark.${kind}_means`);
  return button(t(`mark.${kind}`), act, { data: { mark: kind }, errorsIn: place, title });
}

function marked({ kind, task }) {
  const words = task ? t("mark.right_is", { mark: t(`mark.${kind}`), task }) : t(`mark.${kind}`);
  return el("p", { class: "marked" }, el("b", { text: words }));
}

/** A note to the mark, kept when the field is left or Enter is pressed. */
function noteField({ mark: { kind, task, note } }, set, place) {
  const keep = () => set({ kind, task, note: box.value.trim() }).catch((error) => showError(place, error));
  const box = el("input", { type: "text", id: "note", maxLength: 500, value: note, on: { change: keep } });
  return el("div", { class: "field note" }, el("label", { htmlFor: "note", text: t("mark.note") }), box);
}

/** The panel is drawn anew: who works by keyboard goes on where the old one was. */
function refocus(draw) {
  const inside = document.activeElement?.closest(".marks");
  draw();
  if (inside) document.querySelector(".marks button")?.focus();
}
