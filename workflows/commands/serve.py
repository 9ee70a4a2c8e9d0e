"""`skysift serve`: the map and searches over HTTP."""

import os
import threading
import time
from typing import TYPE_CHECKING

import click

from storage.index.manifest import current_version
from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.recipe.schema import ServiceSection
from workflows.recipe.sections import spec_from

if TYPE_CHECKING:
    from workflows.service.settings import BackendConfig, ServiceSpec


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
    from workflows.service.settings import check_exposure, check_free, prepare_proxy

    spec, config = _spec(run.recipe.service), _config(run)
    check_exposure(spec)
    check_free(spec.host, spec.port)
    current_version(config.index)  # a missing index fails here
    prepare_proxy()
    started_s = time.monotonic()

    def stage(ended: str) -> None:
        click.echo(f"{time.monotonic() - started_s:4.1f} s  {ended}", err=True)

    def ready(address: str) -> None:
        stage("ready")
        line = f"serving {config.index_uri} at {address}; Ctrl-C stops"
        run.show({"address": address}, [line])
        run.stdout.flush()
        if obstacle := no_pictures_because(config):
            click.echo(f"no pictures: {obstacle}", err=True)

    stage("starting Ray")
    threading.Thread(target=_import_service, daemon=True).start()  # Ray's start mostly waits
    with run.ray():
        stage("Ray runs")
        from workflows.service.backend import no_pictures_because
        from workflows.service.deploy import serve_index

        try:
            serve_index(config, spec, ready=ready, stage=stage)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)


def _import_service() -> None:
    import workflows.service.deploy  # noqa: F401


def _config(run: Run) -> "BackendConfig":
    from workflows.service.settings import BackendConfig

    section = run.recipe.service
    return BackendConfig(
        index_uri=run.need_path("index.uri"),
        encoder_uri=run.recipe.encoder.bundle,
        catalog=run.catalog_spec() if run.recipe.catalog.source else None,
        searches=None if section.searches is None else run.location(section.searches),
        replicas=run.recipe.search.replicas,
        max_image_px=section.max_image_px,
        thumbnail_cache_bytes=section.thumbnail_cache_bytes,
    )


def _spec(section: ServiceSection) -> "ServiceSpec":
    from workflows.service.settings import Limits, MapConfig, ServiceSpec

    rate = section.rate_per_s / section.replicas  # each replica counts alone
    return spec_from(
        ServiceSpec,
        section,
        token=section.token or os.environ.get("SKYSIFT_TOKEN"),
        limits=spec_from(Limits, section, rate_per_s=rate),
        map_config=spec_from(MapConfig, section),
    )
