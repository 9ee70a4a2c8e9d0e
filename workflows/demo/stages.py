"""Which stages of a run are done, and from what: the reason why a second run is quick.

A stage is skipped when its inputs are those it was done with and its outputs are there. A stage
that was stopped halfway is called again with what it left; if its inputs changed since, its
outputs are deleted first. The record is one small JSON file, replaced as a whole.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from storage.errors import ConfigError
from storage.location import delete, write_bytes

FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """A finished stage.

    Attributes
    ----------
    digest
        Names the inputs; an input of the stages that build on this one.
    result
        Plain values that the stage returned.
    seconds
        How long it took when it ran.
    skipped
        Whether it had been done before.
    """

    name: str
    digest: str
    result: Mapping[str, Any] = field(default_factory=dict)
    seconds: float
    skipped: bool


class StageCache:
    """Runs stages and remembers them in ``stages.json`` of a folder.

    Parameters
    ----------
    folder
        Made when it is not there.

    Raises
    ------
    ConfigError
        The folder holds files, but not those of an earlier run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "stages.json"
        self.finished: list[Done] = []
        folder.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            self._records: dict[str, dict[str, Any]] = self._read()
        elif any(folder.iterdir()):
            raise ConfigError(
                f"{folder} holds files that are not a demo's; give a new or an empty folder"
            )
        else:
            self._records = {}
            self._write()

    def run(
        self,
        name: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        work: Callable[[], Mapping[str, Any]],
    ) -> Done:
        """Run a stage, or skip it.

        Parameters
        ----------
        inputs
            JSON values that decide the result, digests of earlier stages among them.
        outputs
            Names below the folder of what it makes; deleted when made from other inputs.
        work
            Does the stage; what it returns (JSON values) is remembered.
        """
        text = json.dumps([FORMAT, name, inputs], sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        record = self._records.get(name, {})
        there = all((self.folder / output).exists() for output in outputs)
        if there and record.get("digest") == digest and record.get("done"):
            return self._finish(name, skipped=True)
        if record.get("digest") != digest:
            for output in outputs:
                delete(str(self.folder / output))
        self._records[name] = {"digest": digest, "done": False, "seconds": 0.0, "result": {}}
        self._write()
        started = time.monotonic()
        result = dict(work())
        seconds = round(time.monotonic() - started, 2)
        self._records[name] |= {"done": True, "seconds": seconds, "result": result}
        self._write()
        return self._finish(name, skipped=False)

    def _finish(self, name: str, *, skipped: bool) -> Done:
        record = self._records[name]
        done = Done(
            name=name,
            digest=record["digest"],
            result=record["result"],
            seconds=record["seconds"],
            skipped=skipped,
        )
        self.finished.append(done)
        return done

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            content = json.loads(self._path.read_text())
            records: dict[str, dict[str, Any]] = content["stages"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self._path} is not a demo's record ({type(error).__name__}: {error}); "
                "delete the folder and start again"
            ) from error
        return records

    def _write(self) -> None:
        text = json.dumps({"format": FORMAT, "stages": self._records}, indent=1)
        write_bytes(str(self._path), text.encode())
