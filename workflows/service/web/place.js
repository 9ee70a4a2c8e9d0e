// One tile, large, and its other dates.

import { picture, tile } from "./api.js";
import { swipe } from "./change.js";
import { complain, day, element, find } from "./dom.js";
import { closerThan } from "./scale.js";

const SIZE = 256;

/** The panel of the selected tile. `on` has close(), step(tile, scene), search(tile, scene), mark(hit, name). */
export class Place {
  constructor(on) {
    this.on = on;
    this.panel = find("#place");
    this.asked = null;
    this.panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.on.close();
      if (event.key === "ArrowLeft") this.step(-1);
      if (event.key === "ArrowRight") this.step(1);
    });
  }

  close() {
    this.asked = null;
    this.panel.hidden = true;
    this.panel.replaceChildren();
  }

  /** Show a tile; `hit` has tile, scene and, when it is one, a score. */
  async show(hit, pictures) {
    this.asked = this.hit = hit;
    this.pictures = pictures;
    let answer;
    try {
      answer = await tile(hit.tile);
    } catch (error) {
      complain(error.message);
      return;
    }
    if (this.asked?.tile !== hit.tile) return;
    this.acquisitions = answer.acquisitions;
    this.at = Math.max(0, this.acquisitions.findIndex((one) => one.scene === this.hit.scene));
    this.build();
    this.panel.hidden = false;
  }

  /** Take over the scores of another answer; null while there is none, so no old score is shown. */
  rescore(hit) {
    if (!this.asked) return;
    this.asked = this.hit = hit ?? { tile: this.asked.tile, scene: this.asked.scene };
    if (!this.panel.hidden) this.build();
  }

  /** The hit or the date inside it that has a scene, with its score; undefined without. */
  scored(scene) {
    const { hit } = this;
    if (hit.scene === scene) return hit.score === undefined ? undefined : hit;
    return hit.dates?.find((one) => one.scene === scene);
  }

  step(by) {
    const next = this.at + by;
    if (!this.acquisitions || next < 0 || next >= this.acquisitions.length) return;
    const held = document.activeElement?.dataset.step;
    this.at = next;
    this.build();
    this.on.step(this.hit.tile, this.acquisitions[next].scene);
    find(held ? `[data-step="${held}"]:not([disabled])` : "button", this.panel)?.focus();
  }

  /** Two dates of a place that changed, one over the other. */
  buildChange() {
    const { hit } = this;
    const facts = [
      ["Score", hit.score.toFixed(2)], ["Moved", [hit.moved, hit.usual].map((one) => one.toPrecision(3) + hit.unit).join(", usual ")],
      ["Before", hit.before_scene], ["After", hit.scene], ["Tile", hit.tile],
    ];
    this.panel.replaceChildren(
      element("div", { class: "dates" },
        element("strong", {}, `${day(hit.before_datetime)} – ${day(hit.datetime)}`),
        element("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => this.on.close() }, "×")),
      swipe(hit, this.pictures),
      element("dl", {}, ...facts.flatMap(([k, v]) => [element("dt", {}, k), element("dd", {}, v)])),
      element("button", {
        type: "button", class: "more", onclick: () => this.on.search(hit.tile, hit.scene),
      }, "Search from the later one"),
    );
  }

  build() {
    if (this.hit.before_scene) {
      this.buildChange();
      return;
    }
    const { hit, at, acquisitions: all } = this;
    const one = all[at];
    const shown = this.scored(one.scene);
    const meaning = closerThan(shown?.closer_than);
    const image = element("img", {
      width: SIZE, height: SIZE, alt: `Tile ${hit.tile} on ${day(one.datetime)}`,
    });
    const why = element("p", { class: "why", hidden: true });
    const explain = (reason) => { why.textContent = reason; why.hidden = !reason; };
    if (this.pictures) picture(image, hit.tile, one.scene, SIZE).then(explain);
    else image.classList.add("missing");
    const stepper = (text, by, label) => element("button", {
      type: "button", "data-step": by, "aria-label": label, onclick: () => this.step(by),
      disabled: at + by < 0 || at + by >= all.length,
    }, text);
    const facts = [
      ...(shown ? [["Score", shown.score.toFixed(3) + (meaning && `, ${meaning}`)]] : []),
      ["Scene", one.scene], ["Tile", hit.tile], ["Cloud", `${Math.round(one.cloud_fraction * 100)} %`],
      ...(one.labels.length ? [["Labels", one.labels.join(", ")]] : []),
    ];
    this.panel.replaceChildren(
      element("div", { class: "dates" },
        stepper("◀", -1, "Earlier date"),
        element("strong", { "aria-live": "polite" }, `${day(one.datetime)} (${at + 1} of ${all.length})`),
        stepper("▶", 1, "Later date"),
        element("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => this.on.close() }, "×")),
      image, why,
      element("dl", {}, ...facts.flatMap(([k, v]) => [element("dt", {}, k), element("dd", {}, v)])),
      element("button", {
        type: "button", class: "more", onclick: () => this.on.search(hit.tile, one.scene),
      }, "Search from this one"),
    );
  }
}
