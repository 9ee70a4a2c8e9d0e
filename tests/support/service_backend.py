"""A backend of the service's routes with an index of one row."""

import datetime as dt

from storage.errors import NotFoundError
from storage.geometry import geojson_footprints
from workflows.service.mosaic import MapTile
from workflows.service.schema import (
    HitBody,
    IndexAnswer,
    MosaicQuery,
    ReadyAnswer,
    SceneBody,
    ScenesAnswer,
    SearchAnswer,
    SearchBody,
    ThumbnailQuery,
    TileAnswer,
)
from workflows.service.telemetry import Served
from workflows.service.thumbnails import Thumbnail

PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)


class OneRow:
    """An index of one row; it records the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[SearchBody, bytes | None]] = []
        self.fault: Exception | None = None

    def search(self, body: SearchBody, image: bytes | None) -> SearchAnswer:
        self.requests.append((body, image))
        if self.fault is not None:
            raise self.fault
        hit = HitBody(
            rank=1,
            score=0.5,
            closer_than=0.99,
            row=2**32 + 7,
            tile_key="g/1/2",
            scene="a",
            datetime=dt.datetime(2020, 1, 2, tzinfo=dt.UTC),
            bbox=[179.0, 1.0, -179.0, 2.0],
            geometry=geojson_footprints([[179.0, 1.0, -179.0, 2.0]])[0],
            cloud_fraction=0.0,
            labels=["water"],
        )
        return SearchAnswer(
            query="q",
            snapshot="S",
            version="0001-ab",
            coverage=1.0,
            ordinary=False,
            learned=False,
            like="ADw",
            hits=[hit],
        )

    def scores(self, like: str, at: tuple[int, int, int]) -> bytes:
        return f"{like} {at}".encode()

    def colours(self, at: tuple[int, int, int]) -> bytes:
        return str(at).encode()

    def tile(self, key: str) -> TileAnswer:
        raise NotFoundError(f"no tile {key}")

    def thumbnail(self, key: str, how: ThumbnailQuery, known: str) -> Thumbnail:
        etag = f'"{key}-{how.scene}-{how.size}"'
        return Thumbnail(content=None if etag in known else PNG, etag=etag, source="drawn")

    def mosaic(self, tile: MapTile, how: MosaicQuery, known: str) -> Thumbnail:
        etag = f'"{tile.z}-{tile.x}-{tile.y}-{how.since}"'
        return Thumbnail(content=None if etag in known else PNG, etag=etag, source="drawn")

    def about(self) -> IndexAnswer:
        return IndexAnswer(
            version="0001-ab",
            snapshot="S",
            rows=1,
            dimension=1,
            bbox=[0, 0, 1, 1],
            since=dt.datetime(2020, 1, 2, tzinfo=dt.UTC),
            until=dt.datetime(2020, 1, 2, tzinfo=dt.UTC),
            classes=["water"],
            bands=["red"],
            pairs=None,
            pictures=True,
            max_k=1,
            base_map=None,
            base_map_attribution="",
        )

    def scenes(self, offset: int, limit: int, state: str | None) -> ScenesAnswer:
        box = [0.0, 0.0, 1.0, 1.0]
        found = [
            SceneBody(
                scene=f"s{n}",
                state="embedded",
                reason="",
                rows=1,
                datetime=None,
                bbox=box,
                geometry=geojson_footprints([box])[0],
            )
            for n in range(offset, min(offset + limit, 3))
        ]
        return ScenesAnswer(snapshot="S", total=3, offset=offset, scenes=found)

    def ready(self) -> ReadyAnswer:
        if self.fault is not None:
            raise self.fault
        return ReadyAnswer(version="0001-ab", snapshot="S", rows=1)

    def served(self) -> Served:
        committed = dt.datetime(2024, 7, 1, tzinfo=dt.UTC)
        return Served(version="0001-ab", rows=1, committed_at=committed, scenes={"embedded": 3})
