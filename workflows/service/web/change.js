// Change: the form with the two periods, the places that changed, and a pair of pictures with a swipe.

import { picture } from "./api.js";
import { complain, day, element, find } from "./dom.js";

const SIZE = 128;
const LARGE = 256;
const PERIOD = /^\S{4,100}$/;

/** Listen to the form; `on` gets { before, after, toward }. */
export function watchChange(on) {
  find("#change").addEventListener("submit", (event) => {
    event.preventDefault();
    const { before, after, toward } = event.target.elements;
    const periods = [before, after].map((one) => one.value.replaceAll(" ", ""));
    if (periods.every((one) => PERIOD.test(one))) {
      on({ before: periods[0], after: periods[1], toward: toward.checked });
    } else complain("Give two periods: a year, a month or a day, such as 2019 and 2024, or START/END.");
  });
}

/** Put the periods into the form; `words` says what changes may be toward, empty for nothing. */
export function fillChange(change, words) {
  const { before, after, toward } = find("#change").elements;
  if (change) Object.assign(before, { value: change.before });
  if (change) Object.assign(after, { value: change.after });
  if (change || !words) toward.checked = Boolean(change?.toward && words);
  toward.disabled = !words;
  find("#toward-words").textContent = words ? `toward ${words}` : "toward a query: search first";
}

/** The body of the request; the filters are those of the page without its dates. */
export function changeBody({ change, blend, k, area, cloud, label }, like) {
  const filter = {};
  if (area) filter.bbox = area;
  if (cloud < 100) filter.max_cloud_fraction = cloud / 100;
  if (label) filter.labels = [label];
  const { before, after } = change;
  if (change.toward && like) return { before, after, toward: like, k, filter };
  return { before, after, ...(blend !== null && { blend }), k, filter };
}

/** What was found, for people. */
export function changeInWords({ query, compared, beyond, unjudged }) {
  const words = `Places by ${query}: ${compared.toLocaleString("en")} compared, `
    + `${beyond.toLocaleString("en")} far beyond the usual`;
  return unjudged ? `${words}, ${unjudged.toLocaleString("en")} not judged` : words;
}

function photograph(pictures, tile, scene, size, alt) {
  const image = element("img", { alt, width: size, height: size });
  if (pictures) picture(image, tile, scene, size);
  else image.classList.add("missing");
  return image;
}

/** The card of a place that changed: before and after side by side. */
export function changeCard(one, pictures, open) {
  const dates = [one.before_datetime, one.datetime].map(day);
  const words = `Change ${one.rank}: score ${one.score.toFixed(2)}, ${dates[0]} to ${dates[1]}`;
  return element("li", { class: "card change", "data-rank": one.rank },
    element("button", { type: "button", class: "show", "aria-label": words, onclick: () => open(one) },
      element("span", { class: "two" },
        photograph(pictures, one.tile, one.before_scene, SIZE, ""),
        photograph(pictures, one.tile, one.scene, SIZE, "")),
      element("span", { class: "score", title: "standard deviations beyond the usual" }, one.score.toFixed(2)),
      element("span", { class: "date" }, `${dates[0]} – ${dates[1]}`)));
}

/** The earlier picture over the later one, cut where the slider is; the arrows move it. */
export function swipe(one, pictures) {
  const [before, after] = [one.before_datetime, one.datetime].map(day);
  const over = element("div", { class: "over" },
    photograph(pictures, one.tile, one.before_scene, LARGE, `Before: ${before}`));
  const slider = element("input", {
    type: "range", min: 0, max: 100, value: 50, "aria-label": `Swipe from ${before} to ${after}`,
  });
  const cut = () => { over.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`; };
  slider.addEventListener("input", cut);
  // The panel steps through dates by the same keys.
  slider.addEventListener("keydown", (event) => { if (event.key.startsWith("Arrow")) event.stopPropagation(); });
  cut();
  return element("div", { class: "swipe" },
    element("div", { class: "pictures" },
      photograph(pictures, one.tile, one.scene, LARGE, `After: ${after}`), over),
    slider,
    element("p", {}, element("span", {}, before), element("span", {}, after)));
}
