// The review of a lesson: what may not belong among its photographs, and what it would change, before it goes live.
import { ask } from "./api.js";
import { button, el, errorPlace } from "./dom.js";
import { confirmed } from "./dialogs.js";
import { bytes, shortRate, thresholdOf } from "./format.js";
import { card } from "./gallery.js";
import { thumbnail } from "./pictures.js";
import { said } from "./sentences.js";
import { may } from "./session.js";
import { t } from "./words.js";

const FLIPS_SHOWN = 24; // pictures a direction

export function reviewSection(job, act, signal) {
  const { review } = job;
  const ticked = new Set();
  const place = errorPlace();
  const putOn = async () => {
    if (!ticked.size) what.textContent = t("review.accepting");
    await act("accept", { drop: [...ticked] }).finally(draw);
  };
  const accept = button("", putOn, { class: "primary big-button", errorsIn: place });
  const discard = async () => {
    const title = t("review.discard");
    if (await confirmed(title, t("review.discard_means"), title, { danger: true })) await act("cancel");
  };
  const what = el("p", { class: "soft", role: "status" });
  const draw = () => {
    const n = ticked.size;
    accept.textContent = n ? t("review.again", { n }) : t(job.kind === "update" ? "review.accept_update" : "review.accept");
    what.textContent = n ? t("review.again_means") : t("review.accept_means");
  };
  draw();
  const actions = may("teach")
    ? el("div", { class: "actions" }, el("div", { class: "row" }, accept, button(t("review.discard"), discard, { errorsIn: place })), what, place)
    : el("p", { class: "soft", text: t("teach.may_not") });
  return el("div", { class: "sections review" },
    el("section", {}, el("h2", { text: t("review.heading") }),
      el("dl", { class: "figures" },
        pair("product.images", job.images), pair("product.threshold", thresholdOf(review.threshold)),
        pair("product.rate", shortRate(review.false_alarm_rate)), pair("product.bytes", bytes(review.bytes)),
        pair("review.suspects", new Set(review.suspects.map(({ index }) => index)).size)),
      review.promise && said(review.promise, { tag: "p", names: "lead" })),
    doubtsSections(job, ticked, draw),
    unreadableSection(review.unreadable),
    flipsSection(review.flips, signal),
    actions);
}

function pair(key, value) {
  return el("div", {}, el("dt", { text: t(key) }), el("dd", { text: value }));
}

/** Photographs to look at; of those that are there for two reasons, the graver says where. */
function doubtsSections(job, ticked, draw) {
  const { suspects, swallowed } = job.review;
  const grave = new Set(swallowed.map(({ index }) => index));
  const isGrave = ({ index }) => grave.has(index);
  const picks = (key, means, found) => picksSection(key, means, found, job.id, ticked, draw);
  return [
    grave.size > 0 && picks("review.swallowed", "review.swallowed_means", [...swallowed, ...suspects.filter(isGrave)]),
    suspects.length
      ? picks("review.suspects", "review.suspects_means", suspects.filter((one) => !isGrave(one)))
      : el("section", {}, el("h2", { text: t("review.suspects") }), el("p", { text: t("review.no_suspects") })),
  ];
}

function picksSection(key, means, found, id, ticked, draw) {
  if (!found.length) return null;
  // A photograph may be listed for two reasons: it is shown once.
  const byIndex = new Map();
  for (const one of found) byIndex.set(one.index, [...(byIndex.get(one.index) ?? []), one]);
  const items = [...byIndex].map(([index, reasons]) => {
    const change = () => (ticked[box.checked ? "add" : "delete"](index), draw());
    const box = el("input", { type: "checkbox", on: { change } });
    return el("li", {}, el("label", { class: "pick suspect" },
      thumbnail(`jobs/${id}/images/${index}?side=512`, reasons[0].source),
      el("span", { class: "pick-text" }, el("b", { class: "break", text: reasons[0].source }),
        reasons.map(({ reason }) => said(reason, { names: "soft" })),
        el("span", { class: "check" }, box, el("span", { text: t("review.leave_out") })))));
  });
  return el("section", {}, el("h2", { text: t(key) }),
    el("p", { class: "soft", text: t(means) }), el("ul", { class: "picks wide-picks" }, items));
}

function unreadableSection(unreadable) {
  if (!unreadable.length) return null;
  return el("section", {}, el("h2", { text: t("review.unreadable") }),
    el("ul", { class: "plain" }, unreadable.map((text) => el("li", { class: "break", text }))));
}

/** Past verdicts that would be others under the draft, as pictures. */
function flipsSection(flips, signal) {
  if (!flips?.inspections) return null;
  const { inspections: n, to_good: good, to_defective: bad } = flips;
  const heading = el("h2", { text: t("flips.heading") });
  if (!good.length && !bad.length) return el("section", {}, heading, el("p", { text: t("flips.none", { n }) }));
  return el("section", {}, heading, el("p", { class: "soft", text: t("flips.means", { n }) }),
    flipRow("flips.to_good", good, signal), flipRow("flips.to_defective", bad, signal));
}

function flipRow(key, ids, signal) {
  if (!ids.length) return null;
  const list = el("ul", { class: "gallery flips" });
  Promise.all(ids.slice(0, FLIPS_SHOWN).map((id) => ask(`inspections/${id}`, { signal }).catch(() => null)))
    .then((items) => list.append(...items.filter(Boolean).map(card)));
  const rest = ids.length - FLIPS_SHOWN;
  return el("div", {}, el("h3", { text: t(key, { n: ids.length }) }), list,
    rest > 0 && el("p", { class: "soft", text: t("teach.rest", { n: rest }) }));
}
