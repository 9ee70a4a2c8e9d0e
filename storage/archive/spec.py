"""Fields fixed when an archive is made, as attributes of its root group (`geoemb:` included)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from storage.errors import ConfigError, SkysiftError
from storage.parts import Parts
from storage.values import Count, check_limits, check_types, json_digest, refuse_later

FORMAT = 1
_LEAST_NORM = 1e-12
_CACHED_ROWS = 512  # whose vectors stay in the processor's cache between two steps
_GEOEMB = {
    "uuid": "61c12cc5-0e28-4056-999a-480cf3fb7e4c",
    "name": "geoemb:",
    "schema_url": "https://raw.githubusercontent.com/geo-embeddings/embeddings-zarr-convention"
    "/refs/tags/v1/schema.json",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedModel:
    """The model of published embeddings, which an archive of imported rows has for an encoder.

    Parameters
    ----------
    name, version
        As the publisher calls them; the version may be empty.
    dimension
        Length of a vector, D.
    quantization
        How published numbers become vectors: ``none``, ``signed_power`` or ``scale``.
    centre
        The mean vector (D,) of the product, which is subtracted before a vector is scaled to unit
        norm; empty to subtract nothing. Vectors of many models lie in a narrow cone: in a sample
        of Clay v0 the cosine of two tiles is .97 in the median, and .22 without the mean.
    """

    name: str
    dimension: Count
    version: str = ""
    quantization: str = "none"
    centre: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check_limits(self, "published model")
        if len(self.centre) not in (0, self.dimension):
            raise ConfigError(
                f"published model {self.title}: its centre has {len(self.centre)} numbers for "
                f"vectors of {self.dimension}"
            )

    @property
    def title(self) -> str:
        """Name and version, for people."""
        return f"{self.name} {self.version}".rstrip()

    @property
    def fingerprint(self) -> str:
        """Identity of the stored vectors: another centre makes vectors that do not compare."""
        return json_digest(asdict(self))

    def is_same_model(self, other: "PublishedModel") -> bool:
        """Tell whether two stand for the same published vectors, whatever their centres."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("name", "version", "dimension", "quantization")
        )

    def unit_vectors(
        self, vectors: npt.NDArray[Any], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return published vectors (n, D) as the archive stores them: centred, of unit norm.

        A vector without a direction, or with a number that is not finite, becomes NaN. The result
        is ``out`` (n, D), which may be ``vectors`` itself, or else a new array.

        Examples
        --------
        >>> model = PublishedModel(name="m", dimension=2, centre=(1.0, 0.0))
        >>> model.unit_vectors(np.array([[1.0, 2.0], [1.0, 0.0]]))
        array([[ 0.,  1.],
               [nan, nan]], dtype=float32)
        """
        made = np.empty(vectors.shape, np.float32) if out is None else out
        centre = np.asarray(self.centre or 0, np.float32)
        for start in range(0, len(vectors), _CACHED_ROWS):
            part = made[start : start + _CACHED_ROWS]
            with np.errstate(all="ignore"):
                block = np.asarray(vectors[start : start + _CACHED_ROWS], np.float32)
                np.subtract(block, centre, out=part)
                norms = np.sqrt(np.einsum("nd,nd->n", part, part))
                norms[~((norms > _LEAST_NORM) & np.isfinite(norms))] = np.nan
                part *= (1 / norms)[:, None]
        return made


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchiveSpec:
    """Encoder, grid and rules of an archive; written once, at its creation.

    ``grid`` and ``rules`` are the plain forms of the tile grid and tile rules that ingest uses;
    ``classes`` names the columns of ``labels`` (empty: no labels are stored). An archive of
    imported embeddings names their model, ``published``; its ``bands`` and ``encoder_uri`` are
    empty, its ``rules`` are what was stated at the import, and ``tile_px`` is that of the first
    chips, for each grid has its own. ``parts`` are those of the encoder's vectors, if it has two.
    """

    encoder_fingerprint: str
    encoder_uri: str
    dimension: int
    bands: tuple[str, ...]
    tile_px: int
    grid: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    published: PublishedModel | None = None
    parts: Parts | None = None


def root_attributes(spec: ArchiveSpec) -> dict[str, Any]:
    """Return the attributes of a new archive's root group.

    Fields that are None are left out: a release of before knows fewer fields and reads the archive.
    """
    stated = {name: value for name, value in asdict(spec).items() if value is not None}
    return {
        "skysift": {"format": FORMAT, **stated},
        "zarr_conventions": [_GEOEMB],
        "geoemb:type": "chip",
        "geoemb:dimensions": spec.dimension,
        "geoemb:model": f"urn:sha256:{spec.encoder_fingerprint}",
        "geoemb:source_data": ["urn:skysift:ledger"],
        "geoemb:data_type": "float16",
        "geoemb:chip_layout": {
            "layout_type": "irregular" if spec.published else "regular_grid",
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
    if isinstance(stored, dict):
        refuse_later(f"archive {uri}", stored.get("format"), FORMAT)
    if not isinstance(stored, dict) or stored.get("format") != FORMAT:
        found = json.dumps(stored)[:60] if stored else "nothing"
        raise SkysiftError(
            f"{uri} is not an archive of format {FORMAT}: its root says {found}; "
            "open the archive that `skysift ingest` wrote"
        )
    values = {key: value for key, value in stored.items() if key != "format"}
    for name in ("bands", "classes"):
        values[name] = tuple(values[name])
    if model := values.get("published"):
        values["published"] = PublishedModel(**{**model, "centre": tuple(model["centre"])})
    if parts := values.get("parts"):
        values["parts"] = Parts(**parts)
    spec = ArchiveSpec(**values)
    check_types(spec)
    return spec
