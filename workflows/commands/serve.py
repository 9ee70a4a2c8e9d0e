"""`skysift serve`: the map and searches over HTTP."""

import os
import sys
from typing import TYPE_CHECKING

import click

from workflows.commands.common import Run, Verb, pass_run, recipe_option

if TYPE_CHECKING:
    from storage.scene import CatalogSpec
    from workflows.recipe.schema import ServiceSection
    from workflows.service.deploy import ServiceSpec


@click.command(
    "serve",
    cls=Verb,
    example="""
    skysift serve --index work/index
    curl http://127.0.0.1:8000/v1/search --json '{"lonlat": [103.75, 17.92], "k": 5}'
    SKYSIFT_TOKEN=$(openssl rand -hex 32) skysift serve -r world.yaml --host 0.0.0.0""",
)
@recipe_option("--index", "index.uri", "Index to serve.", metavar="URI")
@recipe_option("--encoder", "encoder.bundle", "Bundle for images; the archive's.", metavar="URI")
@recipe_option("--scenes", "catalog.source", "Catalog of the scenes, to draw tiles.", metavar="URI")
@recipe_option("--host", "service.host", "Address to listen on.", metavar="ADDRESS")
@recipe_option("--port", "service.port", "Port to listen on.", type=int, metavar="N")
@recipe_option("--base-map", "service.base_map", "Tiles below the map.", metavar="URL")
@pass_run
def serve(run: Run) -> None:
    """Serve a map and an HTTP API until interrupted.

    Listens on this machine only by default; beyond this machine every request must carry a token
    of the variable SKYSIFT_TOKEN (or of the recipe's service.token; several are separated by
    commas).
    """
    from workflows.service.backend import BackendConfig
    from workflows.service.deploy import check_exposure, prepare_proxy, serve_index

    spec = _spec(run.recipe.service)
    check_exposure(spec)
    prepare_proxy()
    section = run.recipe.service
    config = BackendConfig(
        index_uri=run.need_path("index.uri", "--index"),
        encoder_uri=run.recipe.encoder.bundle,
        catalog=_catalog(run),
        options=run.storage,
        replicas=run.recipe.search.replicas,
        max_image_px=section.max_image_px,
        thumbnail_cache_bytes=section.thumbnail_cache_bytes,
    )

    def ready(address: str) -> None:
        run.show({"address": address}, [f"serving {config.index_uri} at {address}; Ctrl-C stops"])
        sys.stdout.flush()

    with run.ray():
        try:
            serve_index(config, spec, ready=ready)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)


def _spec(section: "ServiceSection") -> "ServiceSpec":
    from workflows.service.app import Limits, MapConfig
    from workflows.service.deploy import ServiceSpec

    token = section.token.get_secret_value() if section.token else os.environ.get("SKYSIFT_TOKEN")
    return ServiceSpec(
        host=section.host,
        port=section.port,
        token=token,
        limits=Limits(
            max_k=section.max_k,
            max_body_bytes=section.max_body_bytes,
            rate_per_s=section.rate_per_s / section.replicas,  # each replica counts alone
            burst=section.burst,
        ),
        map_config=MapConfig(
            base_map=section.base_map,
            base_map_attribution=section.base_map_attribution,
            cors_origins=section.cors_origins,
        ),
        request_timeout_s=section.request_timeout_s,
        replicas=section.replicas,
    )


def _catalog(run: Run) -> "CatalogSpec | None":
    from workflows.recipe.specs import catalog_spec

    return catalog_spec(run.settings) if run.recipe.catalog.source else None
