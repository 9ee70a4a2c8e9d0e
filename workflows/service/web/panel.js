// The forms: what is looked for, and what is let through.

import { complain, find, numbers } from "./dom.js";

const KINDS = /\.(png|jpe?g|tiff?)$/i;
const SAVED = /\.json$/i;

function field(form, name) {
  return form.elements.namedItem(name);
}

/** Read a box from a field; undefined when it is wrong (and said so), null when empty. */
function boxOf(input) {
  if (!input.value.trim()) return null;
  const box = numbers(input.value, 4);
  if (box && box[1] < box[3] && Math.abs(box[0]) <= 180 && Math.abs(box[2]) <= 180) return box;
  complain("A box is four numbers: west, south, east, north in degrees, south below north.");
  input.focus();
  return undefined;
}

/** The remedy of exchanged degrees, where the exchanged ones are a place; else nothing. */
export function swapped([lon, lat], ask, [west, south, east, north] = [-180, -90, 180, 90]) {
  const inside = south <= lon && lon <= north
    && (west <= east ? west <= lat && lat <= east : lat >= west || lat <= east);
  return inside ? { words: `Search at longitude ${lat}, latitude ${lon}`, act: () => ask([lat, lon]) } : undefined;
}

/** Listen to the query form. `on` has words(text), place(lonlat), box(box), file(file), saved(file). */
export function watchAsk(on) {
  const form = find("#ask");
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const texts = ["lon", "lat"].map((name) => field(form, name).value.trim());
    if (!texts.some(Boolean)) {
      const box = boxOf(field(form, "box"));
      if (box) on.box(box);
      else if (box === null) complain("Give a longitude and a latitude, a picture, or a box.");
      return;
    }
    const [lon, lat] = texts.map((text) => (text ? Number(text.replace(",", ".")) : NaN));
    if (Math.abs(lon) <= 180 && Math.abs(lat) <= 90) on.place([lon, lat]);
    else complain("Longitude is -180 to 180 and latitude -90 to 90 degrees.", swapped([lon, lat], on.place));
  });
  const enter = (name, act) => field(form, name).addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    act();
  });
  enter("box", () => {
    const box = boxOf(field(form, "box"));
    if (box) on.box(box);
  });
  const words = () => {
    const text = field(form, "words").value.trim();
    if (text) on.words(text);
    else complain("Give words for what to look for, such as: solar farm in desert.");
  };
  enter("words", words);
  find("#find-words").addEventListener("click", words);
  const picked = (file) => {
    if (!file) return;
    if (KINDS.test(file.name)) on.file(file);
    else if (SAVED.test(file.name)) on.saved(file);
    else complain(`${file.name} is no PNG, JPEG or GeoTIFF file, and no saved search (.json).`);
  };
  const input = find("#file");
  input.addEventListener("change", () => { picked(input.files[0]); input.value = ""; });
  watchDrops(picked);
}

function watchDrops(picked) {
  const target = find("#drop");
  const mark = (on) => target.classList.toggle("over", on);
  document.addEventListener("dragover", (event) => { event.preventDefault(); mark(true); });
  document.addEventListener("dragleave", () => mark(false));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    mark(false);
    picked(event.dataTransfer.files[0]);
  });
}

/** Listen to the filters; `changed` gets the values that changed. */
export function watchFilters(changed) {
  const form = find("#filters");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => showCloud(Number(field(form, "cloud").value)));
  form.addEventListener("change", () => {
    const area = boxOf(field(form, "area"));
    if (area === undefined) return;
    changed({
      since: field(form, "since").value, until: field(form, "until").value,
      cloud: Number(field(form, "cloud").value), k: Number(field(form, "k").value),
      label: field(form, "label").value, area,
    });
  });
  form.addEventListener("reset", () => {
    showCloud(100);
    changed({ since: "", until: "", cloud: 100, k: 24, label: "", area: null });
  });
}

function showCloud(percent) {
  find("#cloud-shown").textContent = percent >= 100 ? "any" : `${percent} %`;
}

/** Put a state into the forms. */
export function fillForms(state, about) {
  const [ask, filters] = [find("#ask"), find("#filters")];
  const [lon, lat] = state.query?.lonlat ?? ["", ""];
  field(ask, "words").value = state.query?.text ?? "";
  field(ask, "lon").value = lon;
  field(ask, "lat").value = lat;
  field(ask, "box").value = state.query?.box?.join(", ") ?? "";
  const choice = field(filters, "label");
  if (choice.options.length === 1) {
    for (const name of about.classes) choice.add(new Option(name));
    find("#label-row").hidden = !about.classes.length;
  }
  const count = field(filters, "k");
  if (![...count.options].some((one) => Number(one.value) === state.k)) count.add(new Option(state.k));
  for (const name of ["since", "until", "cloud", "k", "label"]) field(filters, name).value = state[name];
  field(filters, "area").value = state.area?.join(", ") ?? "";
  showCloud(state.cloud);
}
