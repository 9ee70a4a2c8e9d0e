"""Forms of requests for features and items, as OGC API Features and STAC API write them."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from storage.errors import ConfigError
from storage.geometry import usable_bbox
from workflows.service.schema import Message, Name


class ItemsQuery(Message):
    """Which features of a collection to return, as OGC API Features writes it."""

    bbox: str | None = Field(
        None, max_length=200, description="West,south,east,north in WGS84 degrees."
    )
    datetime: str | None = Field(
        None,
        max_length=100,
        description="A moment or date, or START/END; `..` is an open end.",
    )
    limit: int = Field(100, ge=1, description="Most features of the page; at most 2,000 are given.")
    token: str | None = Field(None, max_length=1024, description="From the link `next`.")
    f: Literal["json"] | None = Field(None, description="The only format is GeoJSON.")
    collections: str | None = Field(
        None, max_length=10_000, description="Some clients repeat the collection's name here."
    )
    scene: str | None = Field(
        None, max_length=1024, description="Scene id; where the collection's queryables list it."
    )
    tile_key: str | None = Field(
        None, max_length=1024, description="Tile key; where the collection's queryables list it."
    )

    @property
    def box(self) -> tuple[float, float, float, float] | None:
        """The box."""
        return None if self.bbox is None else _box_of(self.bbox.split(","))


class ItemSearchBody(Message):
    """The conditions of an item search, as STAC API writes them; all must hold."""

    collections: list[Name] | None = Field(
        None, max_length=100, description="`tiles`, `scenes` or `searches/NAME`."
    )
    ids: list[Name] | None = Field(None, max_length=1000)
    bbox: list[float] | None = Field(
        None, description="West, south, east, north in WGS84 degrees; heights are left out."
    )
    intersects: dict[str, Any] | None = Field(
        None, description="GeoJSON Polygon, MultiPolygon or Point in WGS84 degrees."
    )
    datetime: str | None = Field(None, max_length=100, description="A moment, or START/END.")
    limit: int = Field(100, ge=1, description="Most items of the page; at most 2,000 are given.")
    token: str | None = Field(None, max_length=1024, description="From the link `next`.")

    @model_validator(mode="after")
    def _one_place(self) -> "ItemSearchBody":
        if self.bbox is not None and self.intersects is not None:
            raise ValueError("give bbox or intersects, not both")
        return self

    @property
    def place(self) -> tuple[float, float, float, float] | None:
        """The box, or the point that items contain."""
        if self.bbox is not None:
            return _box_of(self.bbox)
        if self.intersects is not None and self.intersects.get("type") == "Point":
            longitude, latitude = list(self.intersects.get("coordinates", ()))[:2]
            return _box_of([longitude, latitude, longitude, latitude])
        return None

    @property
    def area(self) -> dict[str, Any] | None:
        """The polygon that items intersect."""
        shape = self.intersects
        return None if shape is None or shape.get("type") == "Point" else shape


class ItemSearchQuery(ItemsQuery):
    """The conditions of an item search in an address; lists have commas."""

    ids: str | None = Field(None, max_length=100_000)
    intersects: str | None = Field(None, max_length=1_000_000, description="GeoJSON as text.")

    def as_body(self) -> ItemSearchBody:
        """Return the same conditions as a body.

        Raises
        ------
        ConfigError
            They are not conditions of a search.
        """
        lists = {name: getattr(self, name) for name in ("collections", "ids", "bbox")}
        split = {name: text.split(",") for name, text in lists.items() if text is not None}
        others = {"datetime": self.datetime, "limit": self.limit, "token": self.token}
        try:
            shape = None if self.intersects is None else json.loads(self.intersects)
            return ItemSearchBody.model_validate({**split, **others, "intersects": shape})
        except ValidationError as error:
            raise ConfigError(f"search: {error.errors()[0]['msg']}") from error
        except ValueError as error:
            raise ConfigError(f"search: intersects is not JSON ({error}); give GeoJSON") from error

    @classmethod
    def of(cls, body: ItemSearchBody) -> "ItemSearchQuery":
        """Return the conditions of a body."""
        values = body.model_dump(exclude_none=True)
        for name in ("collections", "ids", "bbox"):
            if name in values:
                values[name] = ",".join(map(str, values[name]))
        if "intersects" in values:
            values["intersects"] = json.dumps(values["intersects"])
        return cls(**values)


def _box_of(numbers: Sequence[Any]) -> tuple[float, float, float, float] | None:
    try:
        box = usable_bbox([float(number) for number in numbers])
    except (TypeError, ValueError) as error:
        raise ConfigError(f"bbox: {error}; give west,south,east,north") from error
    if box is None:
        raise ConfigError(
            f"bbox {numbers} is not west,south,east,north in WGS84 degrees; check the order"
        )
    return box
