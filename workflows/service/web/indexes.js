// The indexes that this person may read; the address of the page names the one that it shows.

import { chosenIndex, json } from "./api.js";
import { element, find } from "./dom.js";

const addressOf = (name) => `${location.pathname}?index=${encodeURIComponent(name)}`;

/** Offer the indexes where there are several; go to one that may be read where this one may not. */
export async function offerIndexes() {
  const { default: first, indexes } = await json("./v1/indexes");
  const shown = chosenIndex ?? first;
  if (!chosenIndex && indexes.length && !indexes.some(({ name }) => name === first)) {
    location.replace(addressOf(indexes[0].name));
    return;
  }
  const list = find("#indexes select");
  list.replaceChildren(...indexes.map(({ name }) => element("option", { value: name }, name)));
  if (!indexes.some(({ name }) => name === shown)) list.prepend(element("option", { value: "" }, "choose…"));
  list.value = indexes.some(({ name }) => name === shown) ? shown : "";
  list.addEventListener("change", () => { if (list.value) location.assign(addressOf(list.value)); });
  find("#indexes").hidden = indexes.length < 2 && list.value !== "";
}
