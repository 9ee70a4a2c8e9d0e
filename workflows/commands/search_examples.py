"""What a search is asked with: options that name examples, and the queries they stand for."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from workflows.commands.common import Run

if TYPE_CHECKING:
    from pipeline.queries import Query, QueryResolver
    from pipeline.search import Searcher

F = TypeVar("F", bound=Callable[..., Any])
KINDS = ("image", "lonlat", "tile", "vector")
LIKE = ("scene", "label", "bbox", "polygon", "since", "until")


class LonLat(click.ParamType[tuple[float, float]]):
    """Two numbers with a comma between them."""

    name = "LON,LAT"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, float]:
        """Read longitude and latitude in degrees."""
        try:
            lon, lat = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not LON,LAT, such as 103.75,17.92", param, ctx)
        if not (-180 <= lon <= 180 and -90 <= lat <= 90):
            self.fail(f"{value!r} is outside -180..180, -90..90; longitude comes first", param, ctx)
        return lon, lat


def example_options(function: F) -> F:
    """Add the options that name examples, positive and negative, and how to read them."""

    def many(*flags: str, **attributes: Any) -> Callable[[F], F]:
        return click.option(*flags, multiple=True, **attributes)

    options: list[Callable[[F], F]] = [
        many("--image", metavar="FILE", help="Like this PNG, JPEG or GeoTIFF."),
        click.option(
            "--bands", metavar="N,N,...", help="With --image: its bands, in the encoder's order."
        ),
        many("--lonlat", "--at", type=LonLat(), help="Like the tile at this place."),
        click.option(
            "--date", metavar="DATE", help="With --lonlat: the acquisition nearest to this."
        ),
        many("--tile", metavar="KEY", help="Like this tile of the archive."),
        click.option("--scene", metavar="ID", help="With --tile: of this scene, not the newest."),
        many("--vector", metavar="FILE", help="Like the vectors in this .npy or JSON file."),
        many("--like-scene", metavar="ID", help="Like the tiles of this scene."),
        many("--like-label", metavar="NAME", help="Like the tiles with this label."),
        click.option(
            "--like-bbox", type=float, nargs=4, metavar="W S E N", help="Like the tiles here."
        ),
        click.option("--like-polygon", metavar="TEXT", help="Like the tiles here: WKT, GeoJSON."),
        click.option("--like-since", metavar="DATE", help="Of those, only from then on."),
        click.option("--like-until", metavar="DATE", help="Of those, only up to then."),
        many("--not-image", metavar="FILE", help="Unlike this picture."),
        many("--not-lonlat", type=LonLat(), help="Unlike the tile at this place."),
        many("--not-tile", metavar="KEY", help="Unlike this tile."),
        many("--not-vector", metavar="FILE", help="Unlike the vectors in this file."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


def check_examples(options: dict[str, Any]) -> None:
    """Check that there is an example, and that what goes with one has it.

    Raises
    ------
    click.UsageError
        An option is missing or goes with nothing.
    """
    if not any(options[kind] for kind in KINDS) and not _like(options):
        raise click.UsageError(
            "give an example: --image, --lonlat, --tile, --vector, or tiles by --like-scene, "
            "--like-label, --like-bbox, --like-polygon"
        )
    for name, owner in (("bands", "image"), ("date", "lonlat"), ("scene", "tile")):
        if options[name] is not None and not options[owner] and not options[f"not_{owner}"]:
            raise click.UsageError(f"--{name} goes with --{owner}")
    if options["each"] and any(options[f"not_{kind}"] for kind in KINDS):
        raise click.UsageError("--each asks one by one; leave the --not- options out")


def examples(
    run: Run, searcher: "Searcher", options: dict[str, Any]
) -> tuple[list["Query"], list["Query"]]:
    """Return the queries of the positive and of the negative examples."""
    from pipeline.queries import QueryResolver

    pictures = options["image"] or options["not_image"]
    encoder = _encoder(run, searcher) if pictures else None
    resolver = QueryResolver(searcher, encoder, run.storage)
    positive = list(_named(resolver, options, ""))
    like = _like(options)
    if like:
        from storage.filters import Filter

        names = {"scene": "scenes", "label": "labels"}
        positive += resolver.tiles(Filter(**{names.get(n, n): v for n, v in like.items()}))
    return positive, list(_named(resolver, options, "not_"))


def _like(options: dict[str, Any]) -> dict[str, Any]:
    return {name: options[f"like_{name}"] for name in LIKE if options[f"like_{name}"]}


def _named(resolver: "QueryResolver", options: dict[str, Any], prefix: str) -> Iterator["Query"]:
    bands = options["bands"]
    indexes = [_band(part) for part in bands.split(",")] if bands else None
    for href in options[f"{prefix}image"]:
        yield resolver.image(href, indexes)
    for lon, lat in options[f"{prefix}lonlat"]:
        yield resolver.point(lon, lat, options["date"])
    for key in options[f"{prefix}tile"]:
        yield resolver.tile(key, options["scene"])
    for path in options[f"{prefix}vector"]:
        yield from _vectors(path)


def _encoder(run: Run, searcher: "Searcher") -> Any:
    from encoders.bundle import load_encoder
    from storage.archive import Archive

    if run.recipe.encoder.bundle is not None:
        return load_encoder(run.need_path("encoder.bundle"), run.storage)
    manifest = searcher.manifest
    archive = Archive.open(manifest.archive_uri, manifest.snapshot, run.storage)
    return load_encoder(archive.spec.encoder_uri, run.storage)


def _vectors(path: str) -> Iterator["Query"]:
    import numpy as np

    from pipeline.queries import Query
    from storage.errors import ConfigError

    try:
        if path.endswith(".npy"):
            values = np.load(path, allow_pickle=False)
        else:
            values = np.asarray(json.loads(Path(path).read_text(encoding="utf-8")))
        vectors = np.atleast_2d(np.asarray(values, np.float32))
    except ValueError as error:
        raise ConfigError(f"{path} holds no vector of numbers ({error}); give .npy or JSON") from (
            error
        )
    if vectors.ndim != 2:
        raise ConfigError(f"{path} holds an array of {vectors.ndim} dimensions; give one or two")
    for number, vector in enumerate(vectors):
        yield Query(vector=vector, label=path if len(vectors) == 1 else f"{path} {number}")


def _band(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise click.UsageError(f"--bands: {text!r} is no band number") from None
