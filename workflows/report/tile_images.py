"""The parts of a report that an archive gives: tile images, footprints, the ledger in numbers."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike

from storage.archive.reader import Archive
from storage.geometry import centres
from storage.outlines import tile_corners
from workflows.report.charts import Footprints
from workflows.report.html import Answer, LedgerSummary, TileCard
from workflows.report.rendering import TileRenderer, data_uri

MAP_TILES = 20_000
"""Tiles drawn on the maps at most; of more, an even sample."""


def tile_cards(
    renderer: TileRenderer, rows: ArrayLike, scores: ArrayLike | None = None
) -> tuple[TileCard, ...]:
    """Draw rows of the renderer's archive in their order.

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
    classes = renderer.archive.spec.classes
    names = ["scene", "tile_key", "datetime", "bbox"] + (["labels"] if classes else [])
    columns = renderer.archive.read(rows, names)
    cards = []
    for i, scene_id in enumerate(columns["scene"]):
        lon, lat = centres(columns["bbox"][i : i + 1])[0].tolist()
        flags = columns["labels"][i] if classes else ()
        cards.append(
            TileCard(
                picture=data_uri(
                    renderer.draw_or_blank(str(scene_id), str(columns["tile_key"][i]))
                ),
                title=str(scene_id),
                date=str(columns["datetime"][i].astype("datetime64[D]")),
                labels=tuple(name for name, flag in zip(classes, flags, strict=True) if flag),
                score=None if scores is None else float(np.asarray(scores)[i]),
                place=(lon, lat),
            )
        )
    return tuple(cards)


def drawn_answers(
    renderer: TileRenderer,
    queries: ArrayLike,
    hits: Iterable[ArrayLike],
    scores: Iterable[ArrayLike],
) -> tuple[Answer, ...]:
    """Draw queries (row ids) with the row ids and scores of the hits of each."""
    return tuple(
        Answer(query=card, hits=tile_cards(renderer, rows, similarity))
        for card, rows, similarity in zip(tile_cards(renderer, queries), hits, scores, strict=True)
    )


def archive_footprints(
    archive: Archive,
    *,
    colours: tuple[str, ...] = (),
    answers: Iterable[Answer] = (),
) -> Footprints | None:
    """Return one footprint for each place of an archive, coloured by its rarest label.

    Parameters
    ----------
    colours
        One CSS colour a class, instead of the palette.
    answers
        Answers whose queries are marked by their numbers, from 1.

    Returns
    -------
    Footprints or None
        None when the archive is empty.
    """
    places = ["grid", "tile", "bbox"]
    names = ["tile_key", "scene", *places] + (["labels"] if archive.spec.classes else [])
    columns = archive.read_all(names)
    if not len(columns["row"]):
        return None
    _, first = np.unique(columns["tile_key"].astype(str), return_index=True)
    every = first[:: max(1, -(-len(first) // MAP_TILES))]
    rarest = np.full(len(every), -1)
    if archive.spec.classes:
        labels = columns["labels"][every]
        by_count = np.argsort(-columns["labels"].sum(0, dtype=np.int64), kind="stable")
        for index in by_count:  # the rarest is set last
            rarest[labels[:, index] > 0] = index
    return Footprints(
        corners=tile_corners(archive.ledger.grids, *(columns[name][every] for name in places)),
        scene=columns["scene"][every],
        class_index=rarest,
        classes=archive.spec.classes,
        colours=colours,
        marks=tuple(
            (*answer.query.place, str(number))
            for number, answer in enumerate(answers, start=1)
            if answer.query.place
        ),
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
