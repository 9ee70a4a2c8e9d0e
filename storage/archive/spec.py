"""Fields fixed when an archive is made, as attributes of its root group (`geoemb:` included)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from storage.errors import SkysiftError
from storage.values import check_types

_FORMAT = 1
_GEOEMB = {
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention"
    "/refs/tags/v1/schema.json",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveSpec:
    """Encoder, grid and rules of an archive; written once, at its creation.

    ``grid`` and ``rules`` are the plain forms of the tile grid and tile rules that ingest uses;
    ``classes`` names the columns of ``labels`` (empty: no labels are stored).
    """

    encoder_fingerprint: str
    encoder_uri: str
    dimension: int
    bands: tuple[str, ...]
    tile_px: int
    grid: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def root_attributes(spec: ArchiveSpec) -> dict[str, Any]:
    """Return the attributes of a new archive's root group."""
    return {
        "skysift": {"format": _FORMAT, **asdict(spec)},
        "zarr_conventions": [_GEOEMB],
        "geoemb:type": "chip",
        "geoemb:dimensions": spec.dimension,
        "geoemb:model": f"urn:sha256:{spec.encoder_fingerprint}",
        "geoemb:source_data": ["urn:skysift:ledger"],
        "geoemb:data_type": "float16",
        "geoemb:chip_layout": {
            "layout_type": "regular_grid",
            "chip_size": [spec.tile_px, spec.tile_px],
        },
    }


def spec_of(attributes: Mapping[str, Any], uri: str) -> ArchiveSpec:
    """Read the attributes that :func:`root_attributes` returns.

    Raises
    ------
    SkysiftError
        The attributes are not those of an archive of this format.
    """
    stored = attributes.get("skysift")
    if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
        found = json.dumps(stored)[:60] if stored else "nothing"
        raise SkysiftError(
            f"{uri} is not an archive of format {_FORMAT}: its root says {found}; "
            "open the archive that `skysift ingest` wrote"
        )
    values = {key: value for key, value in stored.items() if key != "format"}
    for name in ("bands", "classes"):
        values[name] = tuple(values[name])
    spec = ArchiveSpec(**values)
    check_types(spec)
    return spec
