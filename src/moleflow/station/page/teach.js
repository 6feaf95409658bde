// Teaching: photographs and a name begin a lesson, and the lessons so far. The draft outlives a look at another view.
import { ask, query, send } from "./api.js";
import { button, el, errorPlace, repeat, showError, clearError } from "./dom.js";
import { bytes, moment, percent } from "./format.js";
import { tool } from "./icons.js";
import { onDrop, onPaste, picker } from "./photographs.js";
import { fileThumbnail, thumbnail } from "./pictures.js";
import { may, session } from "./session.js";
import { named, t } from "./words.js";

const FEW = 20; // photographs below which the page advises more
const SHOWN = 60; // previews; the rest is counted
const TIGHT = 1e9; // bytes of free disk below which learning may fail
const RUNNING = ["queued", "learning"];

const draft = { kind: "teach", name: "", product: "", files: [], marked: new Set() };

export function show(root, route, signal) {
  root.append(el("div", { class: "head" }, el("h1", { text: t("nav.teach") })));
  if (!may("teach")) return void root.append(el("p", { class: "lead", text: t("teach.may_not") }));
  const update = route.query.get("update");
  if (update) Object.assign(draft, { kind: "update", product: update });
  const form = el("section", { class: "lesson" });
  const jobs = el("section", {}, el("h2", { text: t("jobs.heading") }));
  root.append(el("div", { class: "teach-columns" }, form, jobs));
  if (session.line.learning) drawForm(form, signal);
  else form.append(el("p", { class: "warn", text: t("teach.no_learning") }));
  drawJobs(jobs, signal);
}

function drawForm(form, signal) {
  const again = () => (form.replaceChildren(), drawForm(form, signal));
  const place = errorPlace();
  const products = session.line.products.map(({ name }) => name);
  if (draft.kind === "update" && !products.includes(draft.product)) draft.product = products[0] ?? "";
  const files = fileBox(place, signal);
  const bar = el("progress", { max: 1, value: 0, hidden: true, "aria-label": t("teach.sending") });
  const said = el("p", { class: "soft", role: "status" });
  const start = button(t("teach.start"), () => begin(bar, said, signal), { class: "primary big-button", errorsIn: place });
  const free = session.line.disk_free_bytes;
  form.append(el("div", { class: "lesson-form" },
    products.length > 0 && kinds(again),
    draft.kind === "teach" ? nameField() : productField(products, again),
    draft.kind === "update" && markedBox(signal),
    files,
    free < TIGHT && el("p", { class: "warn", text: t("teach.disk", { free: bytes(free) }) }),
    el("div", { class: "row" }, start), bar, said, place));
}

function kinds(again) {
  const option = (kind) => {
    const change = () => ((draft.kind = kind), again(), document.getElementById(`kind-${kind}`)?.focus());
    const radio = el("input", { type: "radio", name: "kind", id: `kind-${kind}`, checked: draft.kind === kind, on: { change } });
    return el("label", { class: "segment" }, radio, el("span", { text: t(`teach.kind_${kind}`) }));
  };
  return el("fieldset", { class: "segments" }, el("legend", { class: "hidden", text: t("teach.kind") }), option("teach"), option("update"));
}

function nameField() {
  const box = el("input", {
    type: "text", id: "product-name", value: draft.name, autocomplete: "off", spellcheck: false, maxLength: 80,
    on: { input: () => (draft.name = box.value) },
  });
  return el("div", { class: "field" }, el("label", { htmlFor: box.id, text: t("teach.name") }), box);
}

function productField(products, again) {
  const choice = el("select", { id: "product-choice", on: { change: () => ((draft.product = choice.value), draft.marked.clear(), again()) } },
    products.map((name) => el("option", { value: name, text: name, selected: name === draft.product })));
  return el("div", { class: "field" }, el("label", { htmlFor: choice.id, text: t("teach.product") }), choice);
}

/** Inspections of the product that were marked as false alarms: good images it may learn from. */
function markedBox(signal) {
  const place = errorPlace();
  const list = el("ul", { class: "picks" });
  const none = el("p", { class: "soft", text: t("loading") });
  ask(`inspections${query({ product: draft.product, mark: "false_alarm", limit: 100 })}`, { signal })
    .then(({ items }) => {
      none.textContent = t(items.length ? "teach.marked_means" : "teach.none_marked");
      draft.marked = new Set(items.map(({ id }) => id));
      list.replaceChildren(...items.map(({ id, source, time }) => {
        const change = () => draft.marked[box.checked ? "add" : "delete"](id);
        const box = el("input", { type: "checkbox", checked: true, on: { change } });
        const label = el("span", { class: "break", text: `${source} · ${moment(time)}` });
        return el("li", {}, el("label", { class: "pick" }, thumbnail(`inspections/${id}/image?side=256`), el("span", { class: "check" }, box, label)));
      }));
    })
    .catch((error) => {
      if (error.name !== "AbortError") showError(place, error);
    });
  return el("fieldset", { class: "marked-box" }, el("legend", { text: t("teach.marked") }), none, list, place);
}

function fileBox(place, signal) {
  const count = el("p", { class: "file-count", role: "status" });
  const list = el("ul", { class: "files" });
  const clear = button(t("teach.clear"), () => ((draft.files = []), draw()), { class: "small" });
  const add = (given) => {
    const mark = ({ name, size, lastModified }) => `${name} ${size} ${lastModified}`;
    const known = new Set(draft.files.map(mark));
    draft.files.push(...given.filter((file) => !known.has(mark(file))));
    clearError(place);
    draw();
  };
  const choose = picker(add, { id: "choose-photographs" });
  const zone = el("button", { type: "button", class: "drop-zone", on: { click: () => choose.open() } },
    tool("photos"), el("span", { class: "hint-title", text: t("teach.drop") }), el("span", { text: t("teach.drop_more") }));
  function draw() {
    const n = draft.files.length;
    const advice = n && n < FEW && draft.kind === "teach" ? ` ${t("teach.few", { few: FEW })}` : "";
    count.textContent = n ? t("teach.count", { n }) + advice : t("teach.advice");
    clear.hidden = n === 0;
    box.classList.toggle("has-files", n > 0);
    list.replaceChildren(...draft.files.slice(0, SHOWN).map((file) => {
      const label = t("teach.leave_out", { name: file.name });
      const drop = el("button", { type: "button", class: "remove", "aria-label": label, title: label, on: { click: () => remove(file) } }, tool("close"));
      return el("li", {}, fileThumbnail(file, file.name), drop);
    }), ...(n > SHOWN ? [el("li", { class: "rest", text: t("teach.rest", { n: n - SHOWN }) })] : []));
  }
  function remove(file) {
    const at = draft.files.indexOf(file);
    draft.files.splice(at, 1);
    draw();
    (list.children[Math.min(at, list.children.length - 1)]?.querySelector("button") ?? zone).focus();
  }
  const alive = onlyThis(signal);
  onDrop(add, alive);
  onPaste(add, alive);
  const box = el("div", { class: "file-box" }, choose.element, zone, el("div", { class: "row" }, count, clear), list);
  draw();
  return box;
}

/** Ends with the view, and when the form is drawn anew: only one form takes what is dropped. */
let current = new AbortController();
function onlyThis(signal) {
  current.abort();
  current = new AbortController();
  return AbortSignal.any([signal, current.signal]);
}

async function begin(bar, said, signal) {
  const update = draft.kind === "update";
  const name = (update ? draft.product : draft.name).trim();
  if (!name) {
    document.getElementById("product-name")?.focus();
    throw new Error(t("teach.needs_name"));
  }
  if (!draft.files.length && !(update && draft.marked.size)) throw new Error(t("teach.needs_images"));
  const most = session.line.limits.lesson_images ?? Infinity;
  if (draft.files.length > most) throw new Error(t("teach.too_many", { most }));
  const form = new FormData();
  form.append("kind", draft.kind);
  form.append("name", name);
  for (const file of draft.files) form.append("images", file, file.name);
  if (update && draft.marked.size) form.append("inspections", [...draft.marked].join(","));
  bar.hidden = false;
  try {
    const job = await send("jobs", form, {
      signal, progress: (share) => ((bar.value = share), (said.textContent = t("teach.sent", { percent: percent(share) }))),
    });
    Object.assign(draft, { kind: "teach", name: "", files: [], marked: new Set() });
    location.hash = `#/teach/${job.id}`;
  } finally {
    bar.hidden = true;
    said.textContent = "";
  }
}

function drawJobs(place, signal) {
  const list = el("ul", { class: "jobs" });
  const error = errorPlace();
  const none = el("p", { class: "soft", text: t("jobs.none"), hidden: true });
  place.append(none, error, list);
  let running = false;
  const draw = async () => {
    try {
      const answer = await ask("jobs", { signal });
      const jobs = Array.isArray(answer) ? answer : (answer.jobs ?? answer.items);
      running = jobs.some(({ state }) => RUNNING.includes(state));
      none.hidden = jobs.length > 0;
      clearError(error);
      const held = list.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
      list.replaceChildren(...jobs.map(jobCard));
      if (held) list.querySelector(`[href="${held}"]`)?.focus();
    } catch (problem) {
      if (problem.name !== "AbortError") showError(error, problem);
    }
  };
  repeat(draw, () => (running ? 1000 : 5000), signal);
}

function jobCard({ id, kind, name, state, progress, created }) {
  const share = state === "learning" ? ` ${percent(progress)}` : "";
  return el("li", {}, el("a", { class: "job", href: `#/teach/${id}` },
    el("span", { class: "strong break", text: name }),
    el("span", { class: "job-state", data: { state }, text: named("job", state) + share }),
    el("span", { class: "soft", text: `${t(`teach.kind_${kind}`)} · ${moment(created)}` })));
}
