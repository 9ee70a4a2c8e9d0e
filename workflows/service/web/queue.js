// Tiles that are marked one after another, each with a picture, by keys or buttons, with undo.

import { picture } from "./api.js";
import { day, element, find } from "./dom.js";
import { same } from "./state.js";

const SIZE = 256;
const KEYS = { y: "good", n: "bad", s: "" };
const WORDS = { good: "right", bad: "wrong" };

/** Whether a key is typed into a field and means nothing else. */
const isTyped = ({ target }) => target.closest("input, select, textarea");

/**
 * The panel of the tiles to mark. `on` has mark(tile, name), which returns the mark before, show() at
 * each turn, and finish(marked) when the panel closes.
 */
export class Queue {
  constructor(on) {
    this.on = on;
    this.panel = find("#queue");
    this.tiles = [];
    document.addEventListener("keydown", (event) => this.pressed(event));
  }

  get running() {
    return !this.panel.hidden;
  }

  /** The tile whose turn it is; none at the end. */
  get turn() {
    return this.tiles[this.at] ?? null;
  }

  /** Begin with tiles; `title` says why these, `done` what comes after the last. `at` is the first turn. */
  begin(tiles, { title, done, pictures, at = 0 }) {
    Object.assign(this, { tiles, title, done, pictures, at, note: "", steps: [] });
    this.panel.hidden = false;
    this.build();
    this.panel.scrollIntoView({ block: "nearest" }); // on a phone the cards are below it
  }

  /** Say what the marks tell so far. */
  say(words) {
    this.note = words;
    const note = this.panel.querySelector(".note");
    if (note) note.textContent = words;
  }

  /** Go to one of the tiles. */
  go(tile) {
    const at = this.tiles.findIndex((one) => same(one, tile));
    if (at < 0) return;
    this.at = at;
    this.build();
  }

  /** Mark the tile whose turn it is, or pass it over with an empty name. */
  decide(name) {
    const one = this.turn;
    if (!one) return;
    this.steps.push({ at: this.at, name, was: name && this.on.mark(one, name) });
    this.at += 1;
    this.build();
  }

  undo() {
    const step = this.steps.pop();
    if (!step) return;
    this.at = step.at;
    if (step.name) this.on.mark(this.tiles[step.at], step.was);
    this.build();
  }

  close() {
    this.drop();
    this.on.finish(this.steps.some(({ name }) => name));
  }

  /** Leave: another search came. */
  drop() {
    this.panel.hidden = true;
    this.panel.replaceChildren();
  }

  pressed(event) {
    if (!this.running || isTyped(event) || event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.toLowerCase();
    if (key in KEYS) this.decide(KEYS[key]);
    else if (key === "u") this.undo();
    else if (key === "escape") this.close();
    else return;
    event.preventDefault();
  }

  build() {
    const one = this.turn;
    const progress = one ? `${this.at + 1} of ${this.tiles.length}` : `${this.tiles.length} of ${this.tiles.length}`;
    this.panel.replaceChildren(
      element("div", { class: "dates" },
        element("strong", { "aria-live": "polite" }, `${this.title}: ${progress}`),
        element("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => this.close() }, "×")),
      element("progress", { max: this.tiles.length, value: this.at, "aria-label": "Tiles done" }),
      ...(one ? this.asks(one) : this.end()),
      element("p", { class: "note hint", "aria-live": "polite" }, this.note),
    );
    find("button.first", this.panel)?.focus({ preventScroll: true });
    this.on.show();
  }

  asks(one) {
    const image = element("img", { width: SIZE, height: SIZE, alt: `Tile ${one.tile} on ${day(one.datetime)}` });
    const why = element("p", { class: "why", hidden: true });
    if (this.pictures) {
      picture(image, one.tile, one.scene, SIZE).then((reason) => { why.textContent = reason; why.hidden = !reason; });
    } else image.classList.add("missing");
    const chance = one.probability === undefined ? "" : `, ${Math.round(one.probability * 100)} % probable`;
    return [image, why, element("p", { class: "hint" }, `${day(one.datetime)}${chance}`),
      element("div", { class: "decide" },
        this.button("✓ Right", "Y", "good first", () => this.decide("good")),
        this.button("✗ Wrong", "N", "bad", () => this.decide("bad")),
        this.button("Skip", "S", "", () => this.decide("")),
        this.undoButton())];
  }

  end() {
    const count = (name) => this.steps.filter((step) => step.name === name).length;
    const said = Object.entries(WORDS).map(([name, word]) => `${count(name)} ${word}`).join(", ");
    return [element("p", {}, `All seen: ${said}.`),
      element("div", { class: "decide" },
        this.button(this.done, "", "first wide", () => this.close()), this.undoButton())];
  }

  undoButton() {
    return this.button("Undo", "U", "", () => this.undo(), !this.steps.length);
  }

  button(words, key, kind, act, disabled = false) {
    return element("button", { type: "button", class: kind, onclick: act, disabled, "aria-keyshortcuts": key || null },
      words, ...(key ? [" ", element("kbd", {}, key)] : []));
  }
}
