// The card of the query at the left of the hits: its picture, and the dates to ask with instead.

import { picture, tile } from "./api.js";
import { day, element, find } from "./dom.js";

const SIZE = 128;

/** Shows what was asked; `on` has ask(tile, scene), outline(geometry or null). */
export class Asked {
  constructor(on) {
    this.on = on;
    this.card = find("#asked");
    this.url = null;
  }

  clear() {
    this.shown = null;
    this.card.hidden = true;
    this.on.outline(null);
    if (this.url) URL.revokeObjectURL(this.url);
    this.url = null;
  }

  /** Show the query of an answer; `words` describe a query that is not one tile. */
  async show(answer, query, words, pictures) {
    const key = JSON.stringify([answer.tile, answer.scene, words]);
    if (this.shown === key && !query?.file) return;
    this.clear();
    this.shown = key;
    const image = element("img", { width: SIZE, height: SIZE, alt: "The query" });
    const parts = [];
    if (answer.tile) {
      const { acquisitions, geometry } = await tile(answer.tile);
      if (this.shown !== key) return;
      if (pictures) picture(image, answer.tile, answer.scene, SIZE);
      else image.classList.add("missing");
      this.on.outline(geometry);
      parts.push(this.dates(answer, acquisitions));
    } else if (query?.file && /^image\/(png|jpeg)$/.test(query.file.type)) {
      this.url = URL.createObjectURL(query.file);
      image.src = this.url;
    } else image.classList.add("missing");
    if (!query?.text) parts.unshift(image);
    this.card.replaceChildren(
      element("h3", {}, "Asked with"), ...parts, element("p", { title: words }, words),
    );
    this.card.hidden = false;
  }

  dates(answer, acquisitions) {
    const choice = element("select", {
      "aria-label": "Date of the query", disabled: acquisitions.length < 2,
      onchange: (event) => this.on.ask(answer.tile, event.target.value),
    });
    for (const one of acquisitions) {
      choice.add(new Option(day(one.datetime), one.scene, false, one.scene === answer.scene));
    }
    return choice;
  }
}
