"""Tables whose rows carry their footprint as GeoArrow, which maps and data frames recognise.

References
----------
GeoArrow extension types, https://geoarrow.org/extension-types: a column of WKB whose field states
``geoarrow.wkb`` and the CRS as PROJJSON; the order is longitude, latitude.
"""

import json
from functools import cache

import numpy as np
import pyarrow as pa
import pyproj
import shapely

from storage.geometry import EDGES, footprints

GEOMETRY = "geometry"


def with_geometry(table: pa.Table) -> pa.Table:
    """Return a table with the footprint of each row as a last column, :data:`GEOMETRY`.

    Parameters
    ----------
    table
        With the boxes of its rows, WGS84 degrees, in :data:`storage.geometry.EDGES`.
    """
    boxes = np.stack([table[edge].to_numpy() for edge in EDGES], axis=1)
    metadata = {
        "ARROW:extension:name": "geoarrow.wkb",
        "ARROW:extension:metadata": json.dumps({"crs": _crs84(), "crs_type": "projjson"}),
    }
    field = pa.field(GEOMETRY, pa.binary(), metadata=metadata)
    return table.append_column(field, pa.array(shapely.to_wkb(footprints(boxes)), pa.binary()))


@cache
def _crs84() -> dict[str, object]:
    return dict(pyproj.CRS.from_user_input("OGC:CRS84").to_json_dict())
