"""Tables whose rows carry their footprint as GeoArrow, which maps and data frames recognise.

References
----------
GeoArrow extension types, https://geoarrow.org/extension-types: a column of WKB whose field states
``geoarrow.wkb`` and the CRS as PROJJSON; the order is longitude, latitude.
"""

import json
from functools import cache

import pyarrow as pa
import pyproj


def tagged(table: pa.Table) -> pa.Table:
    """Return a table whose column ``geometry`` is tagged as WKB in longitude and latitude.

    Parameters
    ----------
    table
        As :func:`storage.formats.located` returns it.
    """
    place = table.schema.get_field_index("geometry")
    metadata = {
        "ARROW:extension:name": "geoarrow.wkb",
        "ARROW:extension:metadata": json.dumps({"crs": _crs84(), "crs_type": "projjson"}),
    }
    field = table.schema.field(place).with_metadata(metadata)
    return table.set_column(place, field, table["geometry"])


@cache
def _crs84() -> dict[str, object]:
    return dict(pyproj.CRS.from_user_input("OGC:CRS84").to_json_dict())
