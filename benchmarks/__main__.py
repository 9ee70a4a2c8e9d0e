"""Run the benchmarks one after the other, print one table, and make ``docs/performance.md``.

    python -m benchmarks [--full] [--page] [NAME ...]

``--full`` takes the long forms (millions of rows, a thousand scenes, ten minutes of load);
``--page`` makes the page from the figures that are there, without measuring.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.measure import FOLDER, Row

NAMES = ("search", "index", "losses", "training", "metrics", "ingest", "importing", "composite")
NAMES += ("service", "mosaic", "map", "layers", "marks")
PAGE = FOLDER.parent / "docs/performance.md"
_OPENING = """\
# Performance

Made by `make bench` from `benchmarks/*.json` (do not edit). Each figure stands beside a peer or a
limit of the same run; a ratio is the median over turns in which the two took their chance one after
the other. What fell short comes first. "Full" marks figures of `make bench-full`.
"""
_ROW_FIELDS = {field.name for field in fields(Row)}


def run(names: Sequence[str], *, full: bool) -> list[str]:
    """Run benchmark modules, each in a process of its own; return the names that failed."""
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--full"] if full else [])]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    return failed


def figures(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """Return what each benchmark last wrote: its machine and its rows."""
    paths = {name: folder / f"{name}.json" for name in NAMES}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def page(found: dict[str, dict[str, Any]]) -> str:
    """Return the page: the shortfalls, then every benchmark with its machine."""
    rows = {
        name: [Row(**{key: row[key] for key in row.keys() & _ROW_FIELDS}) for row in each["rows"]]
        for name, each in found.items()
    }
    short = [row for listed in rows.values() for row in listed if row.met is False]
    parts = [_OPENING]
    if unknown := [name for name in NAMES if name not in found]:
        parts += ["## Not measured yet\n", f"{', '.join(unknown)}.\n"]
    if short:
        parts += ["## Not met yet\n", *_shortfalls(short)]
    for name, listed in rows.items():
        parts += [f"## {name.replace('_', ' ').capitalize()}\n", _machine(found[name]["machine"])]
        parts.append("\n".join(_table(listed)) + "\n")
    return "\n".join(parts)


def _shortfalls(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        note = f" {row.note}" if row.note else ""
        yield f"- **{row.what}**: {row.ratio:.3g}, goal {row.direction} {row.goal:g}.{note}"
    yield ""


def _machine(machine: dict[str, Any]) -> str:
    packages = ", ".join(
        f"{name} {machine[name]}"
        for name in machine
        if isinstance(machine[name], str) and name not in ("date", "processor")
    )
    gib = machine["memory_bytes"] / 2**30
    return (
        f"{machine['date']}, {machine['processor']}, {machine['cores']} cores, {gib:.0f} GiB; "
        f"{packages}.\n"
    )


def _table(rows: Sequence[Row]) -> Iterator[str]:
    yield "| what | ours | peer or limit | ratio | goal | met |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in rows:
        peer = f"{row.against} {row.peer:.4g}" if row.peer is not None else row.against
        goal = f"{row.direction} {row.goal:g}" if row.goal is not None else ""
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        what = f"{row.what}. {row.note}" if row.note else row.what
        yield f"| {what} | {row.ours:.4g} {row.unit} | {peer} | {row.ratio:.3g} | {goal} | {met} |"


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description="Run the benchmarks and make their page.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--full", action="store_true", help="the long forms")
    parser.add_argument("--page", action="store_true", help="only make the page")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    failed = [] if arguments.page else run(arguments.names or NAMES, full=arguments.full)
    PAGE.write_text(page(figures()))
    print(f"{PAGE.relative_to(FOLDER.parent)} written", *(f"; {name} FAILED" for name in failed))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
