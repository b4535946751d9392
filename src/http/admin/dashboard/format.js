// Figures as people read them, and elements that hold text: whatever a name has in it, it is text and nothing else.

const UNITS = ["KiB", "MiB", "GiB", "TiB", "PiB"];

/** Bytes, three figures at least: `1.5 GiB`. */
export function bytes(number) {
  if (number == null) return "?";
  const sign = number < 0 ? "−" : "";
  let rest = Math.abs(number);
  if (rest < 1024) return `${sign}${rest} B`;
  let unit = -1;
  while (rest >= 1024 && unit < UNITS.length - 1) {
    rest /= 1024;
    unit += 1;
  }
  return `${sign}${rest < 100 ? rest.toFixed(1) : Math.floor(rest)} ${UNITS[unit]}`;
}

/** `12,345`. */
export const count = (number) => Number(number).toLocaleString("en");

/** `1 blob`, `2 blobs`. */
export const many = (number, one, more = `${one}s`) => `${count(number)} ${number === 1 ? one : more}`;

/** How long something lasts, roughly. */
export function length(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 120) return `${whole} s`;
  if (whole < 7200) return `${Math.floor(whole / 60)} min`;
  if (whole < 172_800) return `${Math.floor(whole / 3600)} h`;
  return `${count(Math.floor(whole / 86_400))} days`;
}

/** How long ago a time was. */
export function ago(time, now = Date.now()) {
  if (!time) return "–";
  const seconds = (now - Date.parse(time)) / 1000;
  return seconds < 5 ? "now" : `${length(seconds)} ago`;
}

/** Part of a whole in percents, or null. */
export const share = (part, whole) => (whole > 0 ? (100 * part) / whole : null);

/** An element with a class and children: elements, or text that stays text. */
export function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children.filter((child) => child != null && child !== ""));
  return made;
}

/** A time that says on being pointed at when exactly it was. */
export function moment(time, text = ago(time)) {
  const made = element("time", "", text);
  if (time) {
    made.dateTime = time;
    made.title = new Date(time).toLocaleString();
  }
  return made;
}

/** A bar; null: how far it is, is not known. */
export function bar(percents, label) {
  const made = element("progress");
  made.max = 100;
  if (percents != null) made.value = percents;
  made.setAttribute("aria-label", label);
  return made;
}
