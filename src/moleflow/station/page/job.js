// One lesson: how far it is, what was found among its photographs, and whether it goes on the line.
import { ask } from "./api.js";
import { announce, button, clearError, el, errorPlace, repeat, showError } from "./dom.js";
import { confirmed } from "./dialogs.js";
import { percent, span } from "./format.js";
import { tool } from "./icons.js";
import { reviewSection } from "./review.js";
import { look, may } from "./session.js";
import { named, t } from "./words.js";

const STEPS = ["queued", "learning", "review", "live"];
const RUNNING = ["queued", "learning"];

export function show(root, route, signal) {
  const path = `jobs/${encodeURIComponent(route.parts[1])}`;
  const place = errorPlace();
  const title = el("h1");
  const steps = el("ol", { class: "steps" });
  const body = el("div", { class: "job-body" });
  let shown = null; // state and review on the page: what a person ticks there is not drawn over
  let progress = null;
  let state = null;
  root.append(
    el("div", { class: "head" }, el("div", {}, el("a", { href: "#/teach", class: "back" }, tool("back"), t("nav.teach")), title)),
    steps, place, body);

  const draw = (job) => {
    clearError(place);
    if (state !== null && state !== job.state) announce(`${job.name}: ${named("job", job.state)}`);
    state = job.state;
    title.textContent = t(`job.title_${job.kind}`, { name: job.name });
    steps.replaceChildren(...STEPS.map((step) => stepItem(step, job)));
    const mark = JSON.stringify([job.state, job.error, job.review]);
    if (mark !== shown) {
      shown = mark;
      progress = RUNNING.includes(job.state) ? progressBox(job, act) : null;
      body.replaceChildren(progress?.element ?? settledBox(job, act, signal));
    }
    progress?.show(job);
  };
  const act = async (what, sent) => {
    draw(await ask(`${path}/${what}`, { method: "POST", body: sent ?? {}, signal }));
    await look();
  };
  const poll = async () => {
    try {
      draw(await ask(path, { signal }));
    } catch (error) {
      if (error.name !== "AbortError") showError(place, error);
    }
  };
  repeat(poll, () => (RUNNING.includes(state) ? 1000 : 5000), signal);
}

function stepItem(step, { state, kind }) {
  const at = STEPS.indexOf(state);
  const mine = STEPS.indexOf(step);
  const how = at < 0 ? "open" : mine < at || state === "live" ? "done" : mine === at ? "now" : "open";
  const words = step === "live" && kind === "update" ? t("step.live_update") : t(`step.${step}`);
  return el("li", { class: how, "aria-current": how === "now" ? "step" : null }, el("span", { text: words }));
}

function progressBox({ images }, act) {
  const place = errorPlace();
  const bar = el("progress", { max: 1, value: 0, "aria-label": t("job.progress") });
  const share = el("b", { class: "share" });
  const stage = el("span");
  const left = el("span", { class: "soft" });
  const cancel = async () => {
    if (await confirmed(t("job.cancel"), t("job.cancel_means"), t("job.cancel"))) await act("cancel");
  };
  return {
    element: el("section", { class: "progress-box" },
      el("p", { class: "progress-words" }, share, stage, left), bar,
      el("p", { class: "soft", text: t("job.meanwhile", { n: images }) }),
      may("teach") && el("div", { class: "row" }, button(t("job.cancel"), cancel, { errorsIn: place })), place),
    show({ state, progress, stage: name, seconds_left: seconds }) {
      if (progress < bar.value) return; // between two stages the service may know less than it told
      bar.value = progress;
      share.textContent = percent(progress);
      stage.textContent = state === "queued" ? t("job.queued_means") : named("stage", name);
      left.textContent = seconds === null ? "" : t("job.left", { time: span(seconds) });
    },
  };
}

function settledBox(job, act, signal) {
  if (job.state === "review") return reviewSection(job, act, signal);
  const place = errorPlace();
  const { unreadable } = job;
  const rest = unreadable.length > 0 && unreadable.length < job.images;
  const without = may("teach") && rest &&
    button(t("job.without", { n: unreadable.length }), () => act("resume", { drop: unreadable }), { class: "primary", errorsIn: place });
  const resume = may("teach") && button(t("job.resume"), () => act("resume"), { class: rest ? "" : "primary", errorsIn: place });
  const name = encodeURIComponent(job.name);
  const update = job.kind === "update";
  const next = update && job.state !== "live" ? `#/teach?update=${name}` : "#/teach";
  const again = el("a", { class: "button", href: next, text: t("job.another") });
  if (job.state === "live") {
    return el("section", { class: "outcome live" },
      el("h2", { text: t(update ? "job.is_updated" : "job.is_live", { name: job.name }) }),
      el("p", { class: "soft", text: t(update ? "job.is_updated_means" : "job.is_live_means") }),
      el("div", { class: "row" }, el("a", { class: "button primary", href: "#/inspect", text: t("job.inspect") }),
        el("a", { class: "button", href: `#/products/${name}`, text: t("job.product") }), again));
  }
  return el("section", { class: "outcome" }, el("h2", { text: named("job", job.state) }),
    job.error && el("p", { class: "error", lang: "en", text: job.error }),
    job.state === "cancelled" && el("p", { class: "soft", text: t("job.cancelled_means") }),
    job.state === "failed" && !rest && el("p", { class: "soft", text: t("job.failed_means") }),
    el("div", { class: "row" }, without, resume, again), place);
}
