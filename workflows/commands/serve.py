"""`skysift serve`: the map and searches over HTTP."""

import os
from typing import TYPE_CHECKING

import click

from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.recipe.schema import ServiceSection
from workflows.recipe.sections import spec_from

if TYPE_CHECKING:
    from workflows.service.deploy import ServiceSpec


@click.command(
    "serve",
    cls=Verb,
    example="""
    skysift serve --index work/index
    curl http://127.0.0.1:8000/v1/search --json '{"lonlat": [103.75, 17.92], "k": 5}'
    SKYSIFT_TOKEN=$(openssl rand -hex 32) skysift serve -r world.yaml --host 0.0.0.0""",
)
@recipe_option("--index", "index.uri")
@recipe_option("--encoder", "encoder.bundle", "Bundle for images; the archive's.")
@recipe_option("--scenes", "catalog.source")
@recipe_option("--host", "service.host")
@recipe_option("--port", "service.port")
@recipe_option("--searches", "service.searches", metavar="FOLDER")
@recipe_option("--base-map", "service.base_map", metavar="URL")
@pass_run
def serve(run: Run) -> None:
    """Serve a map and an HTTP API until interrupted.

    Listens on this machine only by default; beyond this machine every request must carry a token
    of the variable SKYSIFT_TOKEN (or of the recipe's service.token; several are separated by
    commas).
    """
    from workflows.service.backend import BackendConfig, no_pictures_because
    from workflows.service.deploy import check_exposure, prepare_proxy, serve_index

    spec = _spec(run.recipe.service)
    check_exposure(spec)
    prepare_proxy()
    section = run.recipe.service
    config = BackendConfig(
        index_uri=run.need_path("index.uri"),
        encoder_uri=run.recipe.encoder.bundle,
        catalog=run.catalog_spec() if run.recipe.catalog.source else None,
        searches=None if section.searches is None else run.location(section.searches),
        replicas=run.recipe.search.replicas,
        max_image_px=section.max_image_px,
        thumbnail_cache_bytes=section.thumbnail_cache_bytes,
    )

    obstacle = no_pictures_because(config)

    def ready(address: str) -> None:
        run.show({"address": address}, [f"serving {config.index_uri} at {address}; Ctrl-C stops"])
        if obstacle:
            click.echo(f"no pictures: {obstacle}", err=True)
        run.stdout.flush()

    with run.ray():
        try:
            serve_index(config, spec, ready=ready)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)


def _spec(section: ServiceSection) -> "ServiceSpec":
    from workflows.service.app import Limits, MapConfig
    from workflows.service.deploy import ServiceSpec

    rate = section.rate_per_s / section.replicas  # each replica counts alone
    return spec_from(
        ServiceSpec,
        section,
        token=section.token or os.environ.get("SKYSIFT_TOKEN"),
        limits=spec_from(Limits, section, rate_per_s=rate),
        map_config=spec_from(MapConfig, section),
    )
