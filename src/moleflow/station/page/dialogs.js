// Questions to a person, each a <dialog> that is made, answered and gone. Escape is always a way out.
import { el, errorPlace } from "./dom.js";
import { session } from "./session.js";
import { t } from "./words.js";

let count = 0;

/**
 * Shows a dialog; resolves to what `answer()` gives when it is confirmed, null when it is left.
 * `content` is a list of nodes; `valid()` says whether it may be confirmed.
 */
function question({ title, content, confirm, answer, danger = false, valid = () => true, cancel = t("dialog.cancel") }) {
  const before = document.activeElement;
  const heading = el("h2", { id: `dialog-${(count += 1)}`, text: title });
  const yes = el("button", { type: "submit", class: danger ? "danger" : "primary", text: confirm });
  const no = cancel && el("button", { type: "button", text: cancel, on: { click: () => box.close() } });
  const form = el("form", { method: "dialog" }, heading, content, el("div", { class: "row end" }, no, yes));
  const box = el("dialog", { "aria-labelledby": heading.id }, form);
  const check = () => (yes.disabled = !valid());
  return new Promise((done) => {
    let result = null;
    form.addEventListener("input", check);
    form.addEventListener("submit", () => (result = answer()));
    box.addEventListener("close", () => {
      box.remove();
      if (before?.isConnected) before.focus();
      done(result);
    });
    document.body.append(box);
    check();
    box.showModal();
  });
}

/** A token, or null; `message` is why the last one was refused. */
export function askToken(message) {
  const field = el("input", {
    type: "password", id: "token", autocomplete: "off", spellcheck: false, required: true, autofocus: true,
  });
  const why = errorPlace();
  if (message) Object.assign(why, { textContent: message, hidden: false });
  return question({
    title: t("token.title"),
    content: [
      el("p", { text: t("token.why") }),
      el("label", { htmlFor: "token", text: t("token.label") }), field, why,
      el("p", { class: "soft", text: t("token.kept") }),
    ],
    confirm: t("token.enter"),
    // Who copies a whole line of the file of tokens has the role before the colon.
    answer: () => field.value.trim().replace(/^(inspect|teach|admin):/, "") || null,
  });
}

export async function confirmed(title, sentence, confirm, { danger = false } = {}) {
  const content = [el("p", { text: sentence })];
  return (await question({ title, content, confirm, danger, answer: () => true })) === true;
}

/** True when the person typed `name`, letter by letter. */
export async function confirmedByName(name) {
  const field = el("input", { type: "text", id: "typed-name", autocomplete: "off", spellcheck: false, autofocus: true });
  const same = () => field.value.normalize("NFC") === name.normalize("NFC");
  const answer = await question({
    title: t("remove.title", { name }),
    content: [
      el("p", { text: t("remove.means") }),
      el("label", { htmlFor: "typed-name", text: t("remove.type", { name }) }), field,
    ],
    confirm: t("remove.confirm"),
    danger: true,
    valid: same,
    answer: () => same(),
  });
  return answer === true;
}

/** {task, note} of what an image really shows, or null; `task` is null where it was never taught. */
export function wrongProduct({ task, known }) {
  const others = session.line.products.map(({ name }) => name).filter((name) => !known || name !== task);
  const choice = el("select", { id: "right-product" },
    others.map((name) => el("option", { value: name, text: name })),
    el("option", { value: "", text: t("mark.not_taught") }));
  const note = el("input", { type: "text", id: "mark-note", maxLength: 500 });
  return question({
    title: t("mark.wrong_product"),
    content: [
      el("label", { htmlFor: "right-product", text: t("mark.which") }), choice,
      el("label", { htmlFor: "mark-note", text: t("mark.note") }), note,
    ],
    confirm: t("mark.set"),
    answer: () => ({ task: choice.value || null, note: note.value.trim() }),
  });
}

/** The list of shortcuts, and the switch that turns them off. */
export function showHelp(rows, { enabled, enable }) {
  const list = el("dl", { class: "keys" }, rows.flatMap(([keys, words]) => [
    el("dt", {}, keys.map((key) => el("kbd", { text: key }))), el("dd", { text: words }),
  ]));
  const box = el("input", { type: "checkbox", checked: enabled, on: { change: () => enable(box.checked) } });
  const off = el("label", { class: "check" }, box, el("span", { text: t("help.enabled") }));
  return question({
    title: t("help.title"),
    content: [list, off],
    confirm: t("help.close"),
    cancel: null,
    answer: () => true,
  });
}
