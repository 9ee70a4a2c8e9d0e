"""From an archive to the parts of a report: tile pictures, footprints, the ledger in numbers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from storage.archive.reader import Archive, Columns
from storage.geometry import centres
from storage.location import StorageOptions
from storage.scene import Scene
from workflows.report.charts import Footprints
from workflows.report.html import LedgerSummary, Shown
from workflows.report.rendering import TileRenderer, data_uri

MAP_TILES = 20_000
"""Tiles drawn on the maps at most; of more, an even sample."""


class Gallery:
    """Draws rows of an archive from the scenes that they came from.

    Parameters
    ----------
    archive
        Open at the snapshot that the rows belong to.
    scenes
        The scenes of its catalog, with the bands to show.
    options
        How to reach the scenes.
    """

    def __init__(
        self, archive: Archive, scenes: Sequence[Scene], options: StorageOptions | None = None
    ) -> None:
        self._archive = archive
        self._renderer = TileRenderer(archive, scenes, options)

    def show(self, rows: ArrayLike, scores: ArrayLike | None = None) -> tuple[Shown, ...]:
        """Draw rows in their order.

        Parameters
        ----------
        rows
            Row ids, int64 (n,).
        scores
            Similarity of each, float (n,); None for queries.

        Raises
        ------
        NotFoundError
            A row is not in the archive, or its scene not in the catalog.
        SceneError
            A scene can no longer be read.
        """
        names = ["scene", "tile_key", "datetime", "bbox"]
        names += ["labels"] if self._archive.spec.classes else []
        columns = self._archive.read(rows, names)
        values = [None] * len(columns["row"]) if scores is None else np.asarray(scores).tolist()
        return tuple(self._shown(columns, i, score) for i, score in enumerate(values))

    def _shown(self, columns: Columns, i: int, score: float | None) -> Shown:
        scene_id, tile_key = str(columns["scene"][i]), str(columns["tile_key"][i])
        image = self._renderer.draw(scene_id, tile_key)
        lon, lat = centres(columns["bbox"][i : i + 1])[0].tolist()
        present = columns["labels"][i] if self._archive.spec.classes else ()
        return Shown(
            picture=data_uri(image),
            title=scene_id,
            date=str(columns["datetime"][i].astype("datetime64[D]")),
            labels=tuple(
                name for name, flag in zip(self._archive.spec.classes, present, strict=True) if flag
            ),
            score=score,
            place=(lon, lat),
        )


def archive_footprints(
    archive: Archive,
    *,
    colours: tuple[str, ...] = (),
    marks: tuple[tuple[float, float, str], ...] = (),
) -> Footprints | None:
    """Return one footprint for each place of an archive, coloured by its rarest label.

    Parameters
    ----------
    colours
        One CSS colour a class, instead of the palette.
    marks
        Longitude, latitude and text of places to mark.

    Returns
    -------
    Footprints or None
        None when the archive is empty.
    """
    names = ["tile_key", "scene", "bbox"] + (["labels"] if archive.spec.classes else [])
    parts = [archive.read_segment(segment.ordinal, names) for segment in archive.segments]
    if not sum(len(part["row"]) for part in parts):
        return None
    columns = {name: np.concatenate([part[name] for part in parts]) for name in names}
    _, first = np.unique(columns["tile_key"].astype(str), return_index=True)
    every = first[:: max(1, -(-len(first) // MAP_TILES))]
    rarest = np.full(len(every), -1)
    if archive.spec.classes:
        labels = columns["labels"][every]
        by_count = np.argsort(-columns["labels"].sum(0, dtype=np.int64), kind="stable")
        for index in by_count:  # the rarest is set last
            rarest[labels[:, index] > 0] = index
    return Footprints(
        bbox=columns["bbox"][every],
        scene=columns["scene"][every],
        class_index=rarest,
        classes=archive.spec.classes,
        colours=colours,
        marks=marks,
    )


def ledger_summary(archive: Archive) -> LedgerSummary:
    """Return how the scenes of an archive ended, naming those that gave no tile."""
    entries = archive.scenes()
    states = [entry.state for entry in entries]
    return LedgerSummary(
        embedded=states.count("embedded"),
        empty=states.count("empty"),
        quarantined=states.count("quarantined"),
        tiles=len(archive),
        remarks=tuple(
            (entry.scene_id, entry.state, entry.reason)
            for entry in entries
            if entry.state != "embedded"
        ),
    )
