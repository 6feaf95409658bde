// One past inspection, large; the arrow keys go to its neighbours.
import { ask, query } from "./api.js";
import { el, errorPlace, showError } from "./dom.js";
import { tool } from "./icons.js";
import { replace } from "./inbox.js";
import { Result } from "./result.js";
import { keys } from "./shortcuts.js";
import { t } from "./words.js";

const GAP = 20; // numbers in which the next inspection is looked for: some may have been deleted

export async function show(root, route, signal) {
  const id = Number(route.parts[1]);
  const place = errorPlace();
  const result = new Result({ changed: replace, signal });
  const older = neighbour("next", t("history.older"));
  const newer = neighbour("back", t("history.newer"));
  const back = el("a", { href: "#/history", class: "back" }, tool("back"), t("history.back"));
  // Where a person came from with filters, back leads there again.
  back.addEventListener("click", (event) => {
    if (!route.previous?.startsWith("#/history")) return;
    event.preventDefault();
    location.hash = route.previous;
  });
  root.append(
    el("div", { class: "head" }, el("div", {}, back, el("h1", { class: "hidden", text: t("inspection.title", { id }) })),
      el("div", { class: "row" }, newer, older)),
    place, result.element);
  keys(signal, {
    h: () => result.viewer.toggle(), "[": () => result.viewer.fade(-1), "]": () => result.viewer.fade(1),
    ArrowRight: () => older.click(), ArrowLeft: () => newer.click(),
  });
  try {
    await result.display(await ask(`inspections/${id}`, { signal }), { aloud: false });
    const [before, after] = await Promise.all([
      ask(`inspections${query({ before: id, limit: 1 })}`, { signal }),
      ask(`inspections${query({ before: id + GAP, limit: GAP })}`, { signal }),
    ]);
    lead(older, before.items[0]?.id);
    lead(newer, after.items.findLast((item) => item.id > id)?.id);
  } catch (error) {
    if (error.name === "AbortError") return;
    result.element.hidden = true;
    showError(place, error);
  }
}

function neighbour(icon, label) {
  return el("a", { class: "button icon", "aria-disabled": "true", "aria-label": label, title: label }, tool(icon));
}

function lead(link, id) {
  if (id === undefined) return;
  link.href = `#/history/${id}`;
  link.removeAttribute("aria-disabled");
}
