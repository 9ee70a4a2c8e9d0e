"""Uploaded pictures are decoded in processes of their own, within bounds of memory and time.

:mod:`storage.raster.picture` decides by the header whether a file is decoded. What the header does
not tell (a damaged stream, a file that decodes slowly) costs at most one process, which ends itself
when it is late. Messages between the processes are bytes and JSON, because what a decoder of
foreign files sends is not trusted: no pickle is loaded.
"""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import weakref
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue

import numpy as np
import numpy.typing as npt

from storage.errors import ConfigError, SceneError, SkysiftError
from storage.raster.picture import read_picture

logger = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]

_LIMIT_S = 8.0
_BASE_BYTES, _BYTES_PER_PX = 512 << 20, 64
_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "GDAL_DATA", "PROJ_DATA", "PROJ_LIB")
"""What a decoder sees of the environment: no credentials."""


class Decoder:
    """Decodes pictures in processes that wait for the next one; safe to share between threads.

    Parameters
    ----------
    most_px
        Most pixels of a picture, at four bands.
    """

    def __init__(self, most_px: int) -> None:
        self._most_px = most_px
        self._idle: SimpleQueue[_Process] = SimpleQueue()

    def __call__(self, image: bytes) -> Float32:
        """Decode a file.

        Returns
        -------
        ndarray
            float32 (bands, h, w), NaN where invalid.

        Raises
        ------
        ConfigError
            The file is not of a kind that is decoded, or has too many pixels or scans.
        SceneError
            The file cannot be decoded, or not within the bounds.
        """
        process = self._take()
        try:
            pixels = process.decode(image)
        except (EOFError, OSError) as error:
            logger.warning("a decoder of uploads ended: %s", process.end())
            raise SceneError(
                f"the image cannot be decoded within {_LIMIT_S:g} s and the memory for "
                f"{self._most_px:,} pixels; save it anew, or crop it"
            ) from error
        finally:
            if process.runs:
                self._idle.put(process)
        return pixels

    def _take(self) -> "_Process":
        """Return a process that waits, else a new one."""
        while not self._idle.empty():
            with suppress(Empty):  # another thread was faster
                if (process := self._idle.get_nowait()).runs:
                    return process
        return _Process(self._most_px)


class _Process:
    """A process that decodes, one file after the other."""

    def __init__(self, most_px: int) -> None:
        self._ours, theirs = Pipe()
        self._folder = tempfile.TemporaryDirectory(prefix="skysift-upload-")
        passed = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        packages = os.pathsep.join(filter(None, sys.path))
        number = theirs.fileno()
        with theirs:
            self._child = subprocess.Popen(
                [sys.executable, "-m", __name__, str(number), str(most_px)],
                pass_fds=(number,),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**passed, "PYTHONPATH": packages, "TMPDIR": self._folder.name},
            )
        self.end = weakref.finalize(self, _end, self._ours, self._child, self._folder)

    @property
    def runs(self) -> bool:
        """Whether the process can take a file."""
        return self._child.poll() is None

    def decode(self, image: bytes) -> Float32:
        """Decode a file; EOFError or OSError mean that the process has ended."""
        self._ours.send_bytes(image)
        answer = json.loads(self._ours.recv_bytes())
        if "refusal" in answer:
            kind = ConfigError if answer["kind"] == "ConfigError" else SceneError
            raise kind(answer["refusal"])
        pixels = np.empty(answer["shape"], dtype=np.float32)
        self._ours.recv_bytes_into(pixels.data.cast("B"))
        return pixels


def _end(
    connection: Connection,
    child: "subprocess.Popen[bytes]",
    folder: "tempfile.TemporaryDirectory[str]",
) -> str:
    """End a process, and say how it ended."""
    connection.close()
    child.kill()
    code = child.wait()
    folder.cleanup()
    return signal.strsignal(-code) or "" if code < 0 else f"exit code {code}"


def decode(image: bytes, most_px: int) -> Float32:
    """Decode a file in this process; what the decoder raises is in `read_picture`."""
    handle, path = tempfile.mkstemp()
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(image)
        return read_picture(path, most_px=most_px, name="the image").values
    finally:
        Path(path).unlink()


def _serve(descriptor: int, most_px: int) -> None:
    """Decode the files that the parent sends until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory(_BASE_BYTES + _BYTES_PER_PX * most_px)
    with suppress(EOFError, OSError), Connection(descriptor) as parent:
        while True:
            image = parent.recv_bytes()
            signal.setitimer(signal.ITIMER_REAL, _LIMIT_S)  # ends the process, in C code too
            try:
                pixels = np.ascontiguousarray(decode(image, most_px))
                parent.send_bytes(json.dumps({"shape": pixels.shape}).encode())
                parent.send_bytes(pixels.data.cast("B"))
            except SkysiftError as error:
                refusal = {"kind": type(error).__name__, "refusal": str(error)}
                parent.send_bytes(json.dumps(refusal).encode())
            signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(more_bytes: int) -> None:
    """Limit the address space of this process to what it has now and a number of bytes."""
    status = Path("/proc/self/statm")
    if status.exists():  # Linux; other systems do not enforce the limit
        now = int(status.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + more_bytes, now + more_bytes))


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
