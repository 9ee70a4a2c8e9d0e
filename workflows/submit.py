"""Run any Skysift command as a job of a Ray cluster, through Ray's Jobs API.

A job carries the code of this installation and the recipe, never a credential: the cluster's nodes
have their own (instance roles, ``AWS_*`` variables). The cluster's dashboard must require a token
unless it is on this machine or the caller allows an open dashboard, because an open dashboard lets
every client run code on the cluster.
"""

import asyncio
import http.client
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from encoders.plugins import Group, find_plugin
from storage.errors import ConfigError, NotFoundError, SkysiftError
from storage.signatures import without_signatures
from workflows.recipe.document import dotted, read_document, read_text

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

logger = logging.getLogger(__name__)

PACKAGES = ("skysift", "storage", "encoders", "pipeline", "workflows")
_SECRET_NAME = re.compile(
    r".*(secret|token(?!iz)|passw|passphrase|credential|access_?key|api_?key|private_?key"
    r"|signature|authorization|userpwd).*|(.*_)?(key|pass|sas|jwt|dsn|bearer|cookie)|.+_pwd",
    re.IGNORECASE,
)
_SECRET_TEXT = re.compile(
    r"(\b(secret\w*key|access_?key\w*|session_token|password|passwd|api_?key|authorization)"
    r"|^[#\s-]*token)[\"']?[ \t]*[:=][ \t]*[\"']?(?!\$\{\w+\}|null\b|~)[^\s\"',}#]"
    r"|\b(AKIA|ASIA)[A-Z0-9]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY",
    re.IGNORECASE | re.MULTILINE,
)
_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_VARIABLE_USER = re.compile(r"(?<=://)[\w.-]*:?@")  # what is left of a user without variables
_SHORTEST_SECRET, _NESTED_OPTIONS = 8, 4
_ADVICE = "give the cluster's nodes their own credentials (an instance role, AWS_* variables)"
_RECONNECT_S = (1.0, 2.0, 5.0, 10.0)
_RECONNECT_ATTEMPTS = 60
_AGENT_WAIT_S = 60.0
_SILENCE_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """A job to run: the arguments of ``skysift``, its variables, and the CPUs of its driver."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    entrypoint_cpus: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class JobResult:
    """How a job ended: Ray's status and the exit code of the command."""

    job_id: str
    status: str
    exit_code: int
    message: str = ""


def connect(address: str, *, allow_unauthenticated: bool = False) -> "JobSubmissionClient":
    """Connect to the Jobs API of a cluster.

    Raises
    ------
    ConfigError
        The dashboard is on another machine and requires no token.
    SkysiftError
        It cannot be reached, or refuses the token.
    """
    if not (allow_unauthenticated or is_loopback(address)) and not asks_for_token(address):
        raise ConfigError(
            f"the Ray dashboard at {address} accepts jobs from anyone who reaches it; start Ray "
            "with RAY_AUTH_MODE=token, reach it through a tunnel to 127.0.0.1, or pass "
            "--allow-unauthenticated"
        )
    if "ray" not in sys.modules:  # Ray reads it once, when it is first imported
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.job_submission import JobSubmissionClient

    with _named(address):
        return JobSubmissionClient(address)


def submit(client: "JobSubmissionClient", submission: Submission) -> str:
    """Package code and recipe, start the job and return its id.

    Raises
    ------
    ConfigError
        An argument, variable or recipe would carry a credential.
    """
    refuse_secrets(submission)
    with tempfile.TemporaryDirectory(prefix="skysift-submit-") as folder:
        arguments = package(submission.arguments, Path(folder))
        request = {
            "entrypoint": shlex.join(["python", "-m", "workflows.cli", *arguments]),
            "submission_id": f"skysift-{secrets.token_hex(6)}",
            "runtime_env": {
                "working_dir": folder,
                "env_vars": {"PYTHONUNBUFFERED": "1", **submission.environment},
            },
            "metadata": {"skysift": json.dumps(list(submission.arguments))},
            "entrypoint_num_cpus": submission.entrypoint_cpus,
        }
        with _named("the cluster"):
            return _submit_when_up(client, request)


def _submit_when_up(client: "JobSubmissionClient", request: Mapping[str, Any]) -> str:
    """Submit; a head that has just started has no agent for the first seconds."""
    deadline = time.monotonic() + _AGENT_WAIT_S
    while True:
        try:
            return str(client.submit_job(**request))
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def package(arguments: Sequence[str], folder: Path) -> list[str]:
    """Copy the packages, the recipe and the user's own code that the recipe names into a folder.

    Returns
    -------
    list of str
        The arguments to use there.

    Raises
    ------
    NotFoundError
        There is no module of a name such as ``my_losses:Mine``.
    """
    roots = [Path(str(resources.files(name))) for name in PACKAGES]
    for root in (*roots, *_own_code(arguments)):
        if root.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
            shutil.copytree(root, folder / root.name, ignore=ignored)
        else:
            shutil.copyfile(root, folder / root.name)
    rewritten = list(arguments)
    for position, value, prefix in _recipe_arguments(arguments):
        if Path(value).is_file():
            target = f"recipe-{position}{Path(value).suffix}"
            shutil.copyfile(value, folder / target)
            rewritten[position] = f"{prefix}{target}"
    return rewritten


def _own_code(arguments: Sequence[str]) -> set[Path]:
    """Return files and folders of the user's modules that arguments and recipes name.

    Installed packages have to be installed on the cluster.
    """
    groups: dict[str, Group] = {
        "loss": "losses",
        "backbone": "backbones",
        "importer": "importers",
    }
    option = rf"(?:--|training\.|encoder\.|dataset\.)({'|'.join(groups)})[\0=]([^\0]+)"
    named = re.findall(option, "\0".join(arguments))
    for _, file, _ in _recipe_arguments(arguments):
        if Path(file).is_file():
            recipe = read_document(read_text(Path(file)), file, None)[0]
            for part in ("training", "encoder", "dataset") if isinstance(recipe, dict) else ():
                if isinstance(section := recipe.get(part), dict):
                    named += [(kind, str(section.get(kind))) for kind in groups]
    plugins = [find_plugin(groups[kind], name) for kind, name in named if ":" in name]
    return {plugin.root for plugin in plugins if plugin and not plugin.is_installed}


def refuse_secrets(submission: Submission) -> None:
    """Check that nothing that would travel holds a credential.

    What counts is what the job would read from recipes, options and variables, however they spell
    it. A variable (``${NAME}``) is read on the cluster, its default travels.

    Raises
    ------
    ConfigError
        Something does.
    """
    for name, value in submission.environment.items():
        _refuse_values(_yaml(value), f"--env {name}", (name,))
        _refuse_text(value, f"--env {name}")
    for number, argument in enumerate(submission.arguments, 1):
        value = argument
        for _ in range(min(argument.count("="), _NESTED_OPTIONS)):  # --set=section={key: value}
            name, _, value = value.partition("=")
            path = re.sub(r"^(--set|-s|-+)\s*", "", name)
            _refuse_values(_yaml(value), f"--set {path}", tuple(path.split(".")))
        _refuse_text(argument, f"argument {number} of the command")
    for _, file, _ in _recipe_arguments(submission.arguments):
        if Path(file).is_file():
            text = read_text(Path(file))
            _refuse_values(read_document(text, file, None)[0], file)
            _refuse_text(text, file)  # comments travel too


def _yaml(text: str) -> Any:
    """Return the value that YAML reads in a text; the text itself where it is not YAML."""
    try:
        return read_document(text, "", None)[0]
    except ConfigError:
        return text


def _refuse_values(value: Any, where: str, path: tuple[str, ...] = ()) -> None:
    """Refuse a credential anywhere in values of YAML."""
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_values(item, where, (*path, key))
    elif isinstance(value, list):
        for item in value:
            _refuse_values(item, where, path)
    elif value is not None and not isinstance(value, bool):
        names = [name for name in path if _SECRET_NAME.fullmatch(name.replace("-", "_").strip())]
        if names and _VARIABLE.sub("", str(value)):
            raise ConfigError(
                f"{where}: {dotted(path)} is a credential, which would be sent; write ${{NAME}} "
                f"there, or {_ADVICE}"
            )
        _refuse_text(str(value), where)


def _refuse_text(text: str, where: str) -> None:
    """Refuse text that holds a credential: in an address, by its name, or this process's own."""
    plain = _VARIABLE_USER.sub("", _VARIABLE.sub("", text)) if "${" in text else text
    own = [
        value
        for name, value in os.environ.items()
        if _SECRET_NAME.fullmatch(name) and len(value) >= _SHORTEST_SECRET
    ]
    if without_signatures(plain) != plain or _SECRET_TEXT.search(text):
        raise ConfigError(f"{where} holds a credential, which would be sent; {_ADVICE}")
    if any(value in text for value in own):
        raise ConfigError(
            f"{where} holds the value of a credential of this machine's environment, which would "
            f"be sent; {_ADVICE}"
        )


def follow(
    client: "JobSubmissionClient",
    job_id: str,
    write: Callable[[str], None],
    *,
    reconnect_s: Sequence[float] = _RECONNECT_S,
) -> JobResult:
    """Write a job's log as it grows, through dropped connections, until the job ends.

    Raises
    ------
    SkysiftError
        The cluster stays out of reach.
    """
    return asyncio.run(_follow(client, job_id, write, reconnect_s))


def job_result(client: "JobSubmissionClient", job_id: str) -> JobResult:
    """Return a job's status now; the exit code is that of its command once it ended.

    Raises
    ------
    NotFoundError
        The cluster knows no such job.
    """
    with _named("the cluster", job_id):
        info = client.get_job_info(job_id)
    status = str(info.status.value)
    code = info.driver_exit_code
    if code is None:
        code = 0 if status == "SUCCEEDED" else 1
    return JobResult(job_id=job_id, status=status, exit_code=code, message=info.message or "")


def list_jobs(client: "JobSubmissionClient") -> list[dict[str, Any]]:
    """Return Skysift's jobs of a cluster, the newest first."""
    with _named("the cluster"):
        jobs = client.list_jobs()
    found = [
        {
            "job": job.submission_id,
            "status": str(job.status.value),
            "started_ms": job.start_time,
            "ended_ms": job.end_time,
            "command": shlex.join(json.loads((job.metadata or {})["skysift"])),
        }
        for job in jobs
        if job.submission_id and "skysift" in (job.metadata or {})
    ]
    return sorted(found, key=lambda job: job["started_ms"] or 0, reverse=True)


def job_log(client: "JobSubmissionClient", job_id: str) -> str:
    """Return the log of a job so far.

    Raises
    ------
    NotFoundError
        The cluster knows no such job.
    """
    with _named("the cluster", job_id):
        return str(client.get_job_logs(job_id))


def stop_job(client: "JobSubmissionClient", job_id: str) -> None:
    """Ask a job to stop; its commits are kept.

    Raises
    ------
    NotFoundError
        The cluster knows no such job.
    """
    with _named("the cluster", job_id):
        client.stop_job(job_id)


def is_loopback(address: str) -> bool:
    """Tell whether an address is on this machine.

    Examples
    --------
    >>> is_loopback("http://127.0.0.1:8265"), is_loopback("http://ray-head:8265")
    (True, False)
    """
    host = urlsplit(address if "://" in address else f"//{address}").hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def asks_for_token(address: str) -> bool:
    """Tell whether the dashboard refuses a request that carries no token.

    Raises
    ------
    ConfigError
        The address is not an http(s) URL.
    SkysiftError
        It cannot be reached.
    """
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"{address!r} is not a dashboard address; expected http(s)://host:port")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=10)
    with _named(address):
        try:
            connection.request("GET", f"{parts.path.rstrip('/')}/api/jobs/")
            return connection.getresponse().status in {401, 403}
        finally:
            connection.close()


async def _follow(
    client: "JobSubmissionClient",
    job_id: str,
    write: Callable[[str], None],
    reconnect_s: Sequence[float],
) -> JobResult:
    import aiohttp  # comes with Ray's dashboard, as the client does

    log = _Log(write)
    failures = 0
    while True:
        try:
            await _tail(client, job_id, log)
            result = job_result(client, job_id)
            failures = 0
            if result.status in {"SUCCEEDED", "FAILED", "STOPPED"}:
                log.rewind()
                log.add(job_log(client, job_id))
                return result
        except (SkysiftError, RuntimeError, OSError, aiohttp.ClientError) as error:
            if isinstance(error, NotFoundError) or failures >= _RECONNECT_ATTEMPTS:
                raise
            logger.warning("lost job %s's log (%s); connecting again", job_id, _first_line(error))
        await asyncio.sleep(reconnect_s[min(failures, len(reconnect_s) - 1)])
        failures += 1


async def _tail(client: "JobSubmissionClient", job_id: str, log: "_Log") -> None:
    """Write the new part of the job's log until the connection ends or is silent for a while.

    A connection that was cut without a word never ends by itself, hence the limit.
    """
    log.rewind()
    texts: Any = client.tail_job_logs(job_id)  # a generator, which its annotation hides
    try:
        while True:
            log.add(await asyncio.wait_for(anext(texts), _SILENCE_S))
    except (StopAsyncIteration, TimeoutError):
        return
    finally:
        await texts.aclose()


class _Log:
    """Write each character of a log once, however often the log is sent from its beginning."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write, self._written, self._position = write, 0, 0

    def rewind(self) -> None:
        """Expect the log from its beginning."""
        self._position = 0

    def add(self, text: str) -> None:
        """Take the next part of the log."""
        new = text[max(0, self._written - self._position) :]
        self._position += len(text)
        if new:
            self._write(new)
            self._written = self._position


def _recipe_arguments(arguments: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Yield position, value and option prefix of every recipe named in the arguments."""
    for position, argument in enumerate(arguments):
        if argument.startswith("--recipe="):
            yield position, argument.removeprefix("--recipe="), "--recipe="
        elif position and arguments[position - 1] in {"--recipe", "-r"}:
            yield position, argument, ""
        elif re.match(r"-r[^-]", argument):
            yield position, argument.removeprefix("-r"), "-r"


@contextmanager
def _named(place: str, job_id: str | None = None) -> Iterator[None]:
    """Turn errors of Ray and of the network into one line."""
    try:
        yield
    except (RuntimeError, OSError, http.client.HTTPException) as error:
        text = _first_line(error)
        if job_id is not None and "404" in text:
            raise NotFoundError(
                f"{place} knows no job {job_id!r}; `skysift jobs list` shows them"
            ) from error
        raise SkysiftError(
            f"Ray's Jobs API of {place}: {text}; check the address, and that RAY_AUTH_TOKEN is "
            "the cluster's"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
