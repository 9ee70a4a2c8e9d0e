// The description of the index, requested while the code of the map is still on its way.

import { json } from "./api.js";

export const about = json("v1/index");
about.catch(() => {}); // said where it is awaited
