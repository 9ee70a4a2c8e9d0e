"""`skysift submit` and `skysift jobs`: run commands on a cluster."""

import sys
from typing import TYPE_CHECKING

import click

from storage.values import printable
from workflows.commands.common import Run, Verb, pass_run, recipe_option
from workflows.console import format_table

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

_ADDRESS = recipe_option("--address", "cluster.dashboard", metavar="URL")
_OPEN = click.option(
    "--allow-unauthenticated", is_flag=True, help="Use a remote dashboard that wants no token."
)


@click.command(
    "submit",
    cls=Verb,
    example="""
    skysift submit -- ingest --recipe world.yaml
    skysift submit --address https://head:8265 --no-wait -- train -r world.yaml""",
)
@_ADDRESS
@_OPEN
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="Set a variable.")
@click.option("--no-wait", is_flag=True, help="Print the job's id and return at once.")
@click.argument("arguments", nargs=-1, required=True, metavar="-- COMMAND...")
@pass_run
@click.pass_context
def submit(
    ctx: click.Context,
    run: Run,
    allow_unauthenticated: bool,
    variables: tuple[str, ...],
    no_wait: bool,
    arguments: tuple[str, ...],
) -> None:
    """Run a Skysift command as a job of a Ray cluster and follow its log.

    The code and the recipe travel, credentials never do. The exit code is the command's. Ctrl-C
    leaves the job running.
    """
    from workflows.submit import Submission, follow
    from workflows.submit import submit as submit_job

    environment = dict(_variable(text) for text in variables)
    submission = Submission(arguments=arguments, environment=environment)
    client = _client(run, allow_unauthenticated)
    job_id = submit_job(client, submission)
    if no_wait:
        run.show({"job": job_id}, [job_id])
        return
    click.echo(f"job {job_id}; `skysift jobs stop {job_id}` stops it", err=True)
    log = sys.stderr if run.as_json else run.stdout
    try:
        result = follow(client, job_id, lambda text: _write(log, text))
    except KeyboardInterrupt:
        click.echo(f"job {job_id} goes on; follow it with `skysift jobs logs {job_id}`", err=True)
        raise
    if run.as_json:
        run.show(result)
    ctx.exit(result.exit_code)


@click.group()
def jobs() -> None:
    """See and stop the jobs that `skysift submit` started."""


@jobs.command("list", cls=Verb, example="skysift jobs list --json")
@_ADDRESS
@_OPEN
@pass_run
def list_(run: Run, allow_unauthenticated: bool) -> None:
    """List the jobs, the newest first."""
    from workflows.submit import list_jobs

    found = list_jobs(_client(run, allow_unauthenticated))
    rows = [[job["job"], job["status"], job["command"]] for job in found]
    run.show(found, format_table(["job", "status", "command"], rows))


@jobs.command("logs", cls=Verb, example="skysift jobs logs skysift-0123456789ab")
@_ADDRESS
@_OPEN
@click.argument("job_id")
@pass_run
def logs(run: Run, job_id: str, allow_unauthenticated: bool) -> None:
    """Print the log of a job so far."""
    from workflows.submit import job_log

    client = _client(run, allow_unauthenticated)
    text = job_log(client, job_id)
    run.show({"job": job_id, "log": text}, text.rstrip("\n").split("\n"))


@jobs.command("stop", cls=Verb, example="skysift jobs stop skysift-0123456789ab")
@_ADDRESS
@_OPEN
@click.argument("job_id")
@pass_run
def stop(run: Run, job_id: str, allow_unauthenticated: bool) -> None:
    """Ask a job to stop; its commits are kept."""
    from workflows.submit import job_result, stop_job

    client = _client(run, allow_unauthenticated)
    stop_job(client, job_id)
    run.show(job_result(client, job_id))


def _client(run: Run, allow_unauthenticated: bool) -> "JobSubmissionClient":
    from workflows.submit import connect

    address = run.recipe.cluster.dashboard
    client = connect(address, allow_unauthenticated=allow_unauthenticated)
    run.silence_ray()
    return client


def _variable(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise click.BadParameter(f"{text!r} is not NAME=VALUE", param_hint="--env")
    return name, value


def _write(stream: object, text: str) -> None:
    lines = "\n".join(map(printable, text.split("\n")))
    click.echo(lines, file=stream, nl=False)  # type: ignore[arg-type]
