// Numbers as people read them, in the page's language.
import { spoken, t } from "./words.js";

const OUT_OF_REACH = 1e6; // spreads of good images
const NOTHING = "–"; // what is not known, as of a product that cannot be read

export function decimal(value, digits = 2) {
  if (value === null || value === undefined) return NOTHING;
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  const written = new Intl.NumberFormat(spoken(), options).format(value);
  return Number(value.toFixed(digits)) === 0 ? written.replace(/^[-\u2212]/, "") : written; // no "-0.0"
}

/** Whether nothing scores so high: the threshold of one photograph, which shows no variation. */
export const outOfReach = (threshold) => threshold >= OUT_OF_REACH;

export function thresholdOf(value) {
  return outOfReach(value) ? t("product.out_of_reach") : decimal(value);
}

export function whole(value) {
  if (value === null || value === undefined) return NOTHING;
  return new Intl.NumberFormat(spoken(), { maximumFractionDigits: 0 }).format(value);
}

/** A share in per cent, with as many digits as it takes to be no zero. */
export function percent(share) {
  const digits = share >= 0.1 ? 0 : share >= 0.01 ? 1 : share >= 0.001 ? 2 : 3;
  return new Intl.NumberFormat(spoken(), { style: "percent", maximumFractionDigits: digits }).format(share);
}

export function bytes(count) {
  if (count === null) return NOTHING;
  const units = ["byte", "kilobyte", "megabyte", "gigabyte", "terabyte"];
  let [size, step] = [count, 0];
  while (size >= 1000 && step < units.length - 1) [size, step] = [size / 1000, step + 1];
  const digits = step === 0 || size >= 100 ? 0 : size >= 10 ? 1 : 2;
  const options = { style: "unit", unit: units[step], unitDisplay: "short", maximumFractionDigits: digits };
  return new Intl.NumberFormat(spoken(), options).format(size);
}

/** A span of time in the one or two units that matter. */
export function span(seconds) {
  if (seconds === null) return NOTHING;
  if (seconds < 1) return t("time.seconds", { n: decimal(seconds, 1) });
  if (seconds < 60) return t("time.seconds", { n: whole(seconds) });
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return t("time.minutes", { m: minutes, s: Math.round(seconds % 60) });
  return t("time.hours", { h: Math.floor(minutes / 60), m: minutes % 60 });
}

/** A moment; today's without the date. */
export function moment(iso) {
  const when = new Date(iso);
  const today = new Date().toDateString() === when.toDateString();
  const time = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
  const date = { year: "numeric", month: "short", day: "numeric" };
  return new Intl.DateTimeFormat(spoken(), today ? time : { ...date, ...time }).format(when);
}

/** A moment as the axis of a drawing says it: the day, or today the hour. */
export function tick(iso) {
  const when = new Date(iso);
  const today = new Date().toDateString() === when.toDateString();
  const parts = today ? { hour: "2-digit", minute: "2-digit", hourCycle: "h23" } : { month: "short", day: "numeric" };
  return new Intl.DateTimeFormat(spoken(), parts).format(when);
}

/** `1 / share` as a number one can remember: 250, not 247.3. */
function oneIn(share) {
  const size = 1 / share;
  if (size < 20) return Math.round(size);
  const unit = 10 ** (Math.floor(Math.log10(size)) - 1);
  return Math.round(size / unit) * unit;
}

/** A p-value in words: how many good parts score at least this high. */
export function chance(p) {
  if (p >= 0.95) return t("chance.almost_all");
  const tenths = Math.round(p * 10);
  if (p >= 0.15) return t("chance.tenths", { n: tenths });
  if (p < 1e-6) return t("chance.millionth");
  return t("chance.one_in", { n: oneIn(p) });
}

/** The same for a figure among others. */
export function shortRate(share) {
  if (share === null || share === undefined) return t("rate.by_hand");
  return t("rate.short", { n: oneIn(share), percent: percent(share) });
}

/** A false-alarm rate in words; null where the threshold was set by hand. */
export function rate(share) {
  if (share === null || share === undefined) return t("rate.by_hand");
  return t("rate.one_in", { n: oneIn(share), percent: percent(share) });
}

/** The name of a status in running text, and as the loud word of a verdict. */
export const status = (name) => t(`status.${name}`);
export const verdict = (name) => t(`verdict.${name}`);

/** Where a score stands between a typical good image (0), the threshold (0.5) and twice as far (1). */
export function placeOf(score, threshold) {
  // A threshold set by hand may lie at or below the typical good image: the rule of the library's scale.
  const low = threshold > 0 ? 0 : threshold - 1;
  return Math.min(1, Math.max(0, (score - low) / (2 * (threshold - low))));
}
