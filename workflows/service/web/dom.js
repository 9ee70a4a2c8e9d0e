// Small helpers around the document.

export const find = (selector, root = document) => root.querySelector(selector);

/** Make an element: attributes starting with "on" are listeners, the rest of the arguments its content. */
export function element(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...content);
  return made;
}

/** Say what happened; screen readers hear it. */
export function announce(text) {
  find("#error").hidden = true;
  find("#status").textContent = text;
}

/** Say what went wrong and what to do; `remedy` has words and an action, for a button. */
export function complain(text, remedy) {
  find("#status").textContent = "";
  const place = find("#error");
  place.replaceChildren(text);
  if (remedy) place.append(" ", element("button", { type: "button", onclick: remedy.act }, remedy.words));
  place.hidden = false;
}

/** A text of the service as a sentence. */
export const sentence = (text) => text && `${text[0].toUpperCase()}${text.slice(1)}.`;

/** A number of things: "1 hit", "1,204 tiles". */
export const counted = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** A day for people, in UTC. */
export function day(iso) {
  return new Date(iso).toLocaleDateString("en-GB", {
    day: "numeric", month: "short", year: "numeric", timeZone: "UTC",
  });
}

/** Numbers of a text such as "1, 2, 3, 4"; null when it is something else. */
export function numbers(text, count) {
  const parts = text.split(/[\s,;]+/).filter(Boolean).map(Number);
  return parts.length === count && parts.every(Number.isFinite) ? parts : null;
}

/** A share in whole percent. */
export const percent = (share) => Math.round(share * 100);
