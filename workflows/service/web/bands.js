// Bands of a dropped picture: which of them is which of the encoder's, when their numbers differ.

import { element, find } from "./dom.js";

/** Offer a choice for each band of the encoder; `chosen` gets the numbers, 0 for a missing band. */
export function offerBands(count, needed, chosen) {
  const form = find("#bands");
  const options = (at) => [
    ...Array.from({ length: count }, (_, n) => new Option(`band ${n + 1}`, n + 1, false, n === at || count === 1)),
    new Option("missing (the mean)", 0, false, at >= count && count > 1),
  ];
  const choices = needed.map((name, at) => {
    const choice = element("select", {});
    choice.append(...options(at));
    return { choice, label: element("label", {}, `${name} `, choice) };
  });
  form.replaceChildren(
    element("p", {}, `The picture has ${count} ${count === 1 ? "band" : "bands"}, the encoder needs ${needed.length}:`),
    ...choices.map(({ label }) => label),
    element("button", { type: "submit" }, "Search with these bands"),
  );
  form.onsubmit = (event) => {
    event.preventDefault();
    form.hidden = true;
    chosen(choices.map(({ choice }) => Number(choice.value)));
  };
  form.hidden = false;
  form.scrollIntoView({ block: "nearest" });
  choices[0].choice.focus();
}

export function withdrawBands() {
  find("#bands").hidden = true;
}
