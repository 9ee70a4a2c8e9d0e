"""`skysift serve`: the map and searches over HTTP."""

import click

from workflows.commands.common import Run, Verb, pass_run, recipe_option


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
    from workflows.service.backend import no_pictures_because
    from workflows.service.deploy import check_exposure, from_recipe, prepare_proxy, serve_index

    config, spec = from_recipe(run)
    check_exposure(spec)
    prepare_proxy()
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
