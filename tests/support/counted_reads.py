"""Counts of the costly reads of an ingest: encoder weights, repositories, ledgers."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import icechunk
import pytest

import storage.archive.reader
import storage.archive.writer
from encoders.spec import WEIGHTS_FILE

_active: list[Counter[str]] = []


def _note_weights(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and _active:
        path, mode = arguments[:2]
        if Path(path).name == WEIGHTS_FILE and "r" in (mode or "r"):
            for counts in _active:
                counts["weights"] += 1


sys.addaudithook(_note_weights)  # sees every file that this process opens; cannot be removed


@contextmanager
def counted_reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count ``weights`` (files read), ``opens`` (repositories) and ``folds`` (ledgers) inside."""
    counts: Counter[str] = Counter()

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for method in ("open", "open_or_create"):
            opened = getattr(icechunk.Repository, method)
            patch.setattr(icechunk.Repository, method, staticmethod(counted("opens", opened)))
        folded = storage.archive.reader.read_ledger
        for module in (storage.archive.reader, storage.archive.writer):
            patch.setattr(module, "read_ledger", counted("folds", folded))
        _active.append(counts)
        try:
            yield counts
        finally:
            _active.remove(counts)
