// Requests to the service. A token, when one is asked for, lives in this tab only.

import { find } from "./dom.js";

const KEPT = "skysift-token";

/** The index that the address of the page names; null for the service's default. */
export const chosenIndex = new URLSearchParams(location.search).get("index");
const root = chosenIndex === null ? "v1/" : `v1/${encodeURIComponent(chosenIndex)}/`;

/** A refusal of the service, with its own words. */
export class Refused extends Error {
  constructor(status, { message, bands }) {
    super(message);
    Object.assign(this, { status, bands }); // bands of a picture, where they do not fit the encoder
  }
}

async function fetched(path, options) {
  const headers = { ...options.headers, ...tokenHeaders() };
  try {
    return await fetch(path.replace(/^v1\//, root), { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { message: "The service cannot be reached. Check that it runs, then try again." });
  }
}

/** The page can be asked before all of it is there. */
async function parsed() {
  if (document.readyState !== "loading") return;
  await new Promise((resolve) => { document.addEventListener("readystatechange", resolve, { once: true }); });
}

/** Ask for a token until one fits or the person gives up. */
async function askForToken() {
  await parsed();
  const dialog = find("#sign-in");
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      const given = find("input", dialog).value.trim();
      if (given) sessionStorage.setItem(KEPT, given);
      resolve(Boolean(given));
    }, { once: true });
    if (!dialog.open) dialog.showModal();
  });
}

let asking = null;

/** Request something; the answer's Response, or Refused with a message for people. */
export async function request(path, options = {}) {
  const sent = sessionStorage.getItem(KEPT);
  const response = await fetched(path, options);
  if (response.status === 401) {
    if (sessionStorage.getItem(KEPT) !== sent) return request(path, options); // there is another by now
    sessionStorage.removeItem(KEPT);
    asking ??= askForToken().finally(() => { asking = null; });
    if (await asking) return request(path, options);
  }
  if (response.ok) return response;
  const said = { message: `The service answered ${response.status}.` };
  try {
    Object.assign(said, await response.json());
  } catch { /* not JSON: the status has to do */ }
  if (response.status === 429) said.message = `Too many requests: ${said.message}`;
  throw new Refused(response.status, said);
}

export const json = async (path, options) => (await request(path, options)).json();

/** Every embedded scene, up to a number that a map can show. */
export async function footprints(most) {
  const features = [];
  for (;;) {
    const limit = Math.min(1000, most - features.length);
    const path = `v1/scenes?state=embedded&limit=${limit}&offset=${features.length}`;
    const page = await json(path, { headers: { Accept: "application/geo+json" } });
    features.push(...page.features);
    const total = page.total;
    if (!page.features.length || features.length >= Math.min(most, total)) return { features, total };
  }
}

/**
 * Ask a route, such as "search"; `file` is the picture of an image query. Accept names the form of the
 * answer. A body that is a text is JSON already.
 */
export function post(route, body, { file, accept = "application/json", signal } = {}) {
  const headers = { Accept: accept };
  const text = typeof body === "string" ? body : JSON.stringify(body);
  if (file) {
    const form = new FormData();
    form.append("query", text);
    form.append("image", file);
    return request(`v1/${route}`, { method: "POST", body: form, headers, signal });
  }
  headers["Content-Type"] = "application/json";
  return request(`v1/${route}`, { method: "POST", body: text, headers, signal });
}

export const tile = (key) => json(`v1/tiles/${key}`);

let look = new URLSearchParams();

/** Draw the pictures from now on with these bands and this gamma. */
export function lookLike(words) {
  look = words;
}

/** Bearer token of this tab as headers, for requests that the map makes itself. */
export function tokenHeaders() {
  const token = sessionStorage.getItem(KEPT);
  return token ? { Authorization: `Bearer ${token}` } : {};
}

/** Put the picture of a tile into an image element; returns why there is none, if so. */
export async function picture(image, key, scene, size) {
  const path = `v1/tiles/${key}/thumbnail.png?scene=${encodeURIComponent(scene)}&size=${size}&${look}`;
  try {
    const blob = await (await request(path)).blob();
    image.addEventListener("load", () => URL.revokeObjectURL(image.src), { once: true });
    image.src = URL.createObjectURL(blob);
    return "";
  } catch (error) {
    image.classList.add("missing");
    image.title = error.message;
    return error.message;
  }
}
