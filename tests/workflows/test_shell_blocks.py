"""The shell commands of the README and the pages run as printed, in order, in a prepared folder.

A block that cannot run in a test has the line ``<!-- not run: reason -->`` above it, and
:data:`PAGES` says how many a page has. The tests of :data:`ELSEWHERE` run the other pages.
"""

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from storage.location import StorageOptions
from tests.support.object_store import MotoS3
from tests.support.page_worlds import PARTS
from tests.support.paths import REPOSITORY

INGEST = "skysift ingest --scenes catalog.json --encoder work/bundle --archive work/archive"
LABELLED = f"{INGEST} --labels labels.parquet"
INDEX = "skysift index build --archive work/archive --index work/index"


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page takes for granted, and how many of its blocks do not run.

    Attributes
    ----------
    parts
        Names of :data:`tests.support.page_worlds.PARTS`.
    before
        Commands.
    not_run
        Number of blocks with a reason.
    """

    parts: tuple[str, ...] = ("scenes",)
    before: tuple[str, ...] = ()
    not_run: int = 0


PAGES = {
    "README.md": Page(not_run=1),
    "docs/howto/geospatial.md": Page(parts=("scenes", "bands"), before=(INGEST,)),
    "docs/howto/analyst.md": Page(before=(INGEST, INDEX), not_run=2),
    "docs/howto/migrate-encoder.md": Page(parts=("scenes", "other bundle"), before=(INGEST, INDEX)),
    "docs/howto/platform.md": Page(not_run=2),
    "docs/howto/kubernetes.md": Page(parts=(), not_run=1),
    "docs/upgrades.md": Page(before=(INGEST, INDEX)),
    "docs/howto/embeddings.md": Page(parts=("embeddings",)),
    "docs/howto/soft-labels.md": Page(parts=(), not_run=1),
    "docs/howto/label-next.md": Page(parts=(), not_run=1),
    "docs/composites.md": Page(parts=("scenes", "collection")),
    "docs/change.md": Page(before=(INGEST, INDEX)),
    "docs/backup.md": Page(before=(INGEST, INDEX), not_run=1),
    "docs/cluster.md": Page(parts=(), not_run=2),
    "docs/indexes.md": Page(before=(INGEST, f"{INDEX} --set index.shards=2")),
    "docs/ingest.md": Page(parts=("bands", "formats", "series"), not_run=2),
    "docs/interfaces.md": Page(
        parts=("scenes", "series"),
        before=(
            f"{INGEST.replace('work/archive', 'archive')} --until 2024-03-01",
            "skysift archive tag release-1 --archive archive",
            INGEST.replace("work/archive", "archive"),
            "skysift index build --archive archive --index index",
            "skysift ingest -r naip-series",
            "skysift index build -r naip-series",
            "skysift search -r naip-series --lonlat=-99.15,47.02 --out hits.geojson",
        ),
    ),
    "docs/search.md": Page(
        parts=("scenes", "searches", "marks"),
        before=(LABELLED, INDEX, INDEX.replace("work/index", "work/next")),
        not_run=3,
    ),
    "docs/service.md": Page(
        parts=("scenes", "searches"),
        before=(INGEST, INDEX),
        not_run=3,
    ),
}
ELSEWHERE = {
    "docs/tutorial.md": "tests/workflows/test_tutorial.py",
    "docs/datasets.md": "tests/pipeline/datasets/test_importers.py",
    "docs/howto/encoder.md": "tests/workflows/commands/test_own_encoder.py",
    "docs/howto/importer.md": "tests/workflows/commands/test_own_importer.py",
}

ONLY_PARSED = {"docs/howto/loss.md", "docs/howto/researcher.md", "docs/training.md"}
"""Pages with trainings, which take minutes; `tests.test_docs` reads the options of every line."""

# One process with one Ray for all pages; workers have its environment, credentials included.
IN_ORDER = """
import json, os, sys
from pipeline.runtime.cluster import ray_session
from tests.support.command_line import run
with ray_session(cpus=2):
    for line in sys.stdin:
        folder, words = json.loads(line)
        os.chdir(folder)
        done = run(*words)
        print("\\0", json.dumps([done.code, done.out + done.err]), flush=True)
"""

_BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?```(?:sh|console|bash)\n(?P<lines>.*?)```",
    re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """Commands of a page, and why they are not run; empty for those that are."""

    commands: tuple[str, ...]
    reason: str


def blocks_of(page: str) -> list[Block]:
    found = []
    for match in _BLOCK.finditer((REPOSITORY / page).read_text()):
        lines = match["lines"].replace("\\\n", " ").splitlines()
        commands = tuple(line.strip() for line in lines if line.strip())
        found.append(Block(commands, match["reason"] or ""))
    return found


@pytest.fixture(scope="module")
def s3(moto_server: str) -> MotoS3:
    """The bucket of the pages."""
    keys = {"access_key_id": "testing", "secret_access_key": "testing"}
    options = StorageOptions(endpoint_url=moto_server, region="eu-central-1", **keys)
    made = MotoS3(options, "pages")
    fs, _ = made.location().filesystem()
    fs.mkdir("pages")
    return made


@pytest.fixture(scope="module")
def environment(s3: MotoS3) -> dict[str, str]:
    """That of the reader: credentials of the bucket, and Skysift on Python's path."""
    ours = ("AID_TAR", "MOBILENET_V2", "SCENES", "SKYSIFT_WORK", "SKYSIFT_TOKEN", "RAY_ADDRESS")
    return {
        **{key: value for key, value in os.environ.items() if key not in ours},
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "AWS_ENDPOINT_URL": str(s3.options.endpoint_url),
        "AWS_REGION": str(s3.options.region),
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
    }


class Reader:
    """Somebody who types the commands; a server goes on until the next one or the end."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._commands = subprocess.Popen(
            [sys.executable, "-c", IN_ORDER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._server: subprocess.Popen[str] | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]

    def types(self, folder: Path, command: str) -> None:
        if command.startswith("skysift serve"):
            self._serves(folder, command)
        elif command.startswith("skysift "):
            code, output = self._runs(folder, shlex.split(command)[1:])
            assert code == 0, f"{command}: {code}\n{output}"
        elif shutil.which(command.split()[0]):  # GDAL's programs may be missing
            line = command.replace("127.0.0.1:8000", f"127.0.0.1:{self._port}")
            line = re.sub(r"^curl", "curl --fail-with-body -sS", line)
            done = subprocess.run(
                ["bash", "-e", "-c", line],
                cwd=folder,
                env=self._environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"

    def _runs(self, folder: Path, words: list[str]) -> tuple[int, str]:
        assert self._commands.stdin
        assert self._commands.stdout
        self._commands.stdin.write(json.dumps([str(folder), words]) + "\n")
        self._commands.stdin.flush()
        for line in self._commands.stdout:  # workers of Ray may print others
            if line.startswith("\0"):
                code, output = json.loads(line[1:])
                return code, output
        raise AssertionError(f"the process ended at {words}")

    def _serves(self, folder: Path, command: str) -> None:
        self.leaves()
        self._server = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "workflows.cli",
                *shlex.split(command)[1:],
                "--port",
                str(self._port),
            ],
            cwd=folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._server.stdout
        if not self._server.stdout.readline():
            raise AssertionError(f"{command}: {self._server.communicate()[1]}")

    def leaves(self) -> None:
        """Press Ctrl-C where a server runs."""
        if self._server:
            self._server.send_signal(signal.SIGINT)
            self._server.communicate(timeout=120)
            assert self._server.returncode == 0
            self._server = None

    def closes(self) -> None:
        self._commands.communicate(timeout=120)  # reads what workers still print


@pytest.fixture(scope="module")
def reader(environment: dict[str, str]) -> Iterator[Reader]:
    one = Reader(environment)
    yield one
    one.closes()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs_as_printed(page: str, reader: Reader, tmp_path: Path, s3: MotoS3):
    (tmp_path / "work").mkdir()
    about = PAGES[page]
    for part in about.parts:
        PARTS[part](tmp_path)
    bucket = s3.uri(tmp_path.name)
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file() and "s3://bucket/" in (REPOSITORY / page).read_text():
            at = path.relative_to(tmp_path).as_posix()
            s3.location(f"{tmp_path.name}/{at.removeprefix('work/')}").upload(path)
            s3.location(f"{tmp_path.name}/scenes/{at}").upload(path)
    for path in tmp_path.glob("*.yaml"):
        path.write_text(path.read_text().replace("s3://bucket/", f"{bucket}/"))
    blocks = blocks_of(page)
    assert blocks
    printed = [line for block in blocks if not block.reason for line in block.commands]
    try:
        for line in (*about.before, *printed):
            command = line.replace("s3://bucket/", f"{bucket}/")
            reader.types(tmp_path, command)
    finally:
        reader.leaves()


def test_blocks_that_do_not_run_are_few_and_say_why():
    found = {page: sum(bool(block.reason) for block in blocks_of(page)) for page in PAGES}
    assert found == {page: about.not_run for page, about in PAGES.items()}


def test_every_page_with_commands_is_run():
    places = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    places += (REPOSITORY / "docs/howto").glob("*.md")
    pages = {path.relative_to(REPOSITORY).as_posix() for path in places}
    assert {page for page in pages if blocks_of(page)} == {*PAGES, *ELSEWHERE, *ONLY_PARSED}
    assert not [
        page for page in pages if re.search(r"^    skysift ", (REPOSITORY / page).read_text(), re.M)
    ]
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (REPOSITORY / test).read_text(), f"{test} does not read {page}"
