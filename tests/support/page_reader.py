"""Somebody who follows a page: types its commands in order, in a prepared folder."""

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

from tests.support.object_store import MotoS3
from tests.support.page_worlds import PARTS
from tests.support.pages import PAGES, blocks_of
from tests.support.paths import REPOSITORY

# One process with one Ray for all pages; workers have its environment, credentials included.
IN_ORDER = """
import json, os, sys
from pipeline.runtime.cluster import ray_session
from tests.support.command_line import run
from tests.support.training_world import train_here
train_here()
with ray_session(cpus=2):
    for line in sys.stdin:
        folder, words = json.loads(line)
        os.chdir(folder)
        done = run(*words)
        print("\\0", json.dumps([done.code, done.out + done.err]), flush=True)
"""


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


def follow(page: str, reader: Reader, folder: Path, s3: MotoS3) -> None:
    """Type the commands of a page in an empty folder; its bucket is one of the S3 server."""
    (folder / "work").mkdir()
    about = PAGES[page]
    for part in about.parts:
        PARTS[part](folder)
    bucket = s3.uri(folder.name)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "s3://bucket/" in (REPOSITORY / page).read_text():
            at = path.relative_to(folder).as_posix()
            s3.location(f"{folder.name}/{at.removeprefix('work/')}").upload(path)
            s3.location(f"{folder.name}/scenes/{at}").upload(path)
    for path in folder.glob("*.yaml"):
        path.write_text(path.read_text().replace("s3://bucket/", f"{bucket}/"))
    blocks = blocks_of(page)
    assert blocks
    printed = [line for block in blocks if not block.reason for line in block.commands]
    try:
        for line in (*about.before, *printed):
            reader.types(folder, line.replace("s3://bucket/", f"{bucket}/"))
    finally:
        reader.leaves()
