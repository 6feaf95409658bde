// Single keys. They rest while a person types or a dialog is open, and can be turned off for good.
import { showHelp } from "./dialogs.js";
import { remember, remembered } from "./dom.js";
import { t } from "./words.js";

const BURST = 50; // milliseconds: keys that come closer are a scanner's, which types what it reads

let enabled = remembered("shortcuts", "on") === "on";
let last = -Infinity; // when a sign was typed
let burst = false; // whether the key at hand came closely behind another
let pending = null; // timer of a key that no other may follow closely

document.addEventListener("keydown", ({ key, repeat, timeStamp }) => {
  burst = false;
  if (key.length > 1 || repeat) return; // no sign; one that is held down repeats itself quickly
  clearTimeout(pending);
  burst = timeStamp - last < BURST;
  last = timeStamp;
}, { capture: true });

/** Listens for `table` {key: act} while `signal` lasts; an act that gives false lets the browser have the key. */
export function keys(signal, table) {
  document.addEventListener("keydown", (event) => {
    const act = table[event.key];
    if (!act || !enabled || event.ctrlKey || event.metaKey || event.altKey || typing(event)) return;
    if (burst || document.querySelector("dialog[open]")) return;
    const letter = /^[\p{L}\p{N}]$/u.test(event.key) && !event.repeat;
    if (letter) pending = setTimeout(() => signal.aborted || act(), BURST); // a scanned code may begin with it
    else if (act() !== false) event.preventDefault();
  }, { signal });
}

/** Whether the key belongs to what has the focus: text, a slider's arrows, a button's space. */
function typing({ target, key }) {
  if (!(target instanceof Element)) return false;
  if (target.closest("textarea, select, input:not([type=checkbox], [type=range])")) return true;
  if (key.startsWith("Arrow")) return target.matches("input");
  return key === " " && target.closest("button, a, input, summary") !== null;
}

export function help() {
  const rows = [
    [["1", "2", "3", "4"], t("help.views")], [["o"], t("help.choose")], [["Ctrl+V"], t("help.paste")],
    [["c"], t("help.camera")], [[t("help.space")], t("help.capture")], [["h"], t("help.heat")],
    [["[", "]"], t("help.opacity")], [["←", "→"], t("help.step")], [["/"], t("help.filter")],
    [["t"], t("help.theme")], [["?"], t("help.open")], [["Esc"], t("help.escape")],
  ];
  const enable = (on) => {
    enabled = on;
    remember("shortcuts", on ? "on" : "off");
  };
  return showHelp(rows, { enabled, enable });
}
