"""`skysift serve`: the map and searches over HTTP."""

import threading
import time
from functools import partial

import click

from workflows.commands.common import Run, Verb, pass_run, recipe_option


@click.command(
    "serve",
    cls=Verb,
    example="""
    skysift serve --index work/index
    curl http://127.0.0.1:8000/v1/search --json '{"lonlat": [103.75, 17.92], "k": 5}'
    skysift serve coast=work/coast/index prairie=work/prairie/index --tokens tokens.yaml
    SKYSIFT_TOKEN=$(openssl rand -hex 32) skysift serve -r world.yaml --host 0.0.0.0""",
)
@click.argument("indexes", nargs=-1, metavar="[[NAME=]INDEX]...")
@recipe_option("--index", "index.uri")
@recipe_option("--encoder", "encoder.bundle", "Bundle for images; the archive's.")
@recipe_option("--scenes", "catalog.source")
@recipe_option("--host", "service.host")
@recipe_option("--port", "service.port")
@recipe_option("--tokens", "service.access", metavar="FILE")
@recipe_option("--searches", "service.searches", metavar="FOLDER")
@recipe_option("--base-map", "service.base_map", metavar="URL")
@pass_run
def serve(run: Run, indexes: tuple[str, ...]) -> None:
    """Serve a map and an HTTP API until interrupted.

    Listens on this machine only by default; beyond this machine every request must carry a token
    of the variable SKYSIFT_TOKEN (or of the recipe's service.token; several are separated by
    commas), which may do everything, or of the file --tokens, which gives each token its rights.

    Several indexes are served when they are named; each is at /v1/NAME/, and the first, the
    default, at /v1/ too. Without a NAME, an index has that of its folder.
    """
    from storage.index.manifest import current_version  # imports FAISS
    from workflows.service.proxy import haproxy_at
    from workflows.service.settings import (
        check_exposure,
        check_free,
        check_names,
        from_recipe,
    )
    from workflows.service.tokens import read_token_file, unknown_indexes

    configs, spec = from_recipe(run, indexes)
    check_names(configs)
    check_exposure(spec)
    if spec.tokens and (strays := unknown_indexes(read_token_file(spec.tokens), configs)):
        click.echo(f"{spec.tokens} {strays}", err=True)
    check_free(spec.host, spec.port)
    for config in configs.values():
        current_version(config.index)  # a missing index fails here
    started_s = time.monotonic()

    def stage(ended: str) -> None:
        click.echo(f"{time.monotonic() - started_s:4.1f} s  {ended}", err=True)

    def ready(address: str) -> None:
        stage("ready")
        served = ", ".join(str(config.index_uri) for config in configs.values())
        run.show({"address": address}, [f"serving {served} at {address}; Ctrl-C stops"])
        run.stdout.flush()
        for name, config in configs.items():
            if obstacle := no_pictures_because(config):
                click.echo(f"no pictures of {name}: {obstacle}", err=True)

    stage("starting Ray")
    with haproxy_at(
        spec, run.recipe.cluster.address, warn=partial(click.echo, err=True)
    ) as behind_haproxy:
        threading.Thread(target=_import_service, daemon=True).start()  # Ray's start mostly waits
        with run.ray():
            stage("Ray runs")
            from workflows.service.backend import no_pictures_because
            from workflows.service.deploy import serve_indexes

            try:
                serve_indexes(
                    configs, spec, ready=ready, stage=stage, behind_haproxy=behind_haproxy
                )
            except KeyboardInterrupt:
                click.echo("stopped", err=True)


def _import_service() -> None:
    import workflows.service.deploy  # noqa: F401
