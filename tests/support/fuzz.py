"""Seeded mutations of bytes and of JSON documents, and a bounded process that tries them.

A target is a function of a module that makes the case of a seed and reads it. It returns, or it
raises a house error: both are right. Any other exception, more than ten seconds for one seed, or
more than two gigabytes of memory is a fault, reported with its seed, so that one case can be
repeated alone.
"""

import copy
import json
import multiprocessing
import random
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from storage.errors import SkysiftError

ODD_NUMBERS = (0, 1, -1, 127, 255, 256, 32767, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, 1e308, -1e308, 10**400, float("nan"), float("inf")),
    *("", " ", "\x00", "\x1b[31m", "\ud800", "a\nb", "=1+1", "../../x", "%2e%2e/", "é" * 300),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2020-13-45", "NaN", "1e999"),
    *([], [[]], [None], [0, "x"], {}, {"": None}, {"a": {"b": []}}),
)


@dataclass(frozen=True, slots=True)
class Fault:
    """A seed whose case ended wrongly, and how."""

    seed: int
    what: str


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return a copy with one to four changes: bits, numbers, blocks, or its end."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        at = rng.randrange(min(len(out), 400) if rng.random() < 0.6 else len(out))  # headers first
        match rng.randrange(6):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2:
                code = rng.choice(["<H", ">H", "<I", ">I", "<Q", ">Q"])
                size = struct.calcsize(code)
                out[at : at + size] = struct.pack(code, rng.choice(ODD_NUMBERS) % 256**size)
            case 3:
                del out[at : at + rng.choice((1, 2, 4, 16, 256))]
            case 4:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16, 256)))
            case _:
                del out[rng.randrange(len(out)) :]
    return bytes(out)


def mutate_document(document: Any, rng: random.Random) -> Any:
    """Return a copy of a JSON document with one to three values replaced, removed or repeated."""
    out = json.loads(json.dumps(document))
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(_places(out) or [(None, None)])
        if holder is None:
            return copy.deepcopy(rng.choice(ODD_VALUES))
        match rng.randrange(4):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, holder[key])
            case 1:
                holder[rng.choice([*holder, "", "\x1b", "type", "id"])] = holder[key]
            case _:
                holder[key] = copy.deepcopy(rng.choice(ODD_VALUES))
    return out


def _places(document: Any) -> list[tuple[Any, Any]]:
    """List every (container, key) of a document."""
    keys: Sequence[Any] = ()
    if isinstance(document, dict):
        keys = list(document)
    elif isinstance(document, list):
        keys = range(len(document))
    return [p for key in keys for p in ((document, key), *_places(document[key]))]


def faults_of(
    target: Callable[[int], object],
    seeds: Sequence[int],
    *,
    refusals: tuple[type[BaseException], ...] = (SkysiftError,),
    limit_s: float = 10.0,
    limit_bytes: int = 2 << 30,
    start_s: float = 120.0,
) -> list[Fault]:
    """Run a target over seeds in a process of its own, which is replaced when a case is at fault.

    Parameters
    ----------
    target
        Function of a module, or a `functools.partial` of one, called with a seed.
    seeds
        The cases.
    refusals
        Exceptions that are a right end of a case.
    limit_s, limit_bytes
        Time of one case, and resident memory of the process at any moment.
    start_s
        Time in which the process has to be ready.

    Returns
    -------
    list[Fault]
        The seeds at fault with the end of their traceback, "late" or "large".
    """
    faults: list[Fault] = []
    remaining = list(seeds)
    context = multiprocessing.get_context("spawn")
    while remaining:
        ours, theirs = context.Pipe()
        process = context.Process(target=_run, args=(target, remaining, refusals, theirs))
        process.start()
        theirs.close()
        try:
            remaining = _watch(
                process.pid or 0, ours, remaining, faults, limit_s, limit_bytes, start_s
            )
        finally:
            process.kill()
            process.join()
            ours.close()
    return faults


def _run(
    target: Callable[[int], object],
    seeds: Sequence[int],
    refusals: tuple[type[BaseException], ...],
    parent: Connection,
) -> None:
    parent.send(None)
    for seed in seeds:
        what = ""
        try:
            target(seed)
        except refusals:
            pass
        except BaseException:
            what = "".join(traceback.format_exc().splitlines(keepends=True)[-6:])
        parent.send(what)


def _watch(
    pid: int,
    child: Connection,
    seeds: list[int],
    faults: list[Fault],
    limit_s: float,
    limit_bytes: int,
    start_s: float,
) -> list[int]:
    """Receive the ends of the cases; return the seeds that the process did not come to."""
    done = -1  # the first message says that the process is ready
    deadline = time.monotonic() + start_s
    while done < len(seeds):
        what = ""
        try:
            if child.poll(0.2):
                what = child.recv() or ""
                done += 1
                deadline = time.monotonic() + limit_s
                if what:
                    faults.append(Fault(seeds[done - 1], what))
                continue
            what = "late" if time.monotonic() > deadline else ""
            what = "large" if _resident_bytes(pid) > limit_bytes else what
        except EOFError:
            what = "the process ended"
        if what:
            if done < 0:
                raise RuntimeError(f"the process did not start: {what}")
            faults.append(Fault(seeds[done], what))
            return seeds[done + 1 :]
    return []


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0
