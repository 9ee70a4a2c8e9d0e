"""``run.json``: what a training run was started with, and what it came to.

It decides whether a folder holds the same run (go on, or return what it came to), one that may be
resumed with other settings, or another run altogether (refused).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from pipeline.training.spec import FIXED, RUNTIME, TrainingJob, TrainingResult, plain
from storage.errors import ConfigError, NotFoundError
from storage.location import join_uri, read_bytes, write_bytes

logger = logging.getLogger(__name__)

_RECORD = "run.json"


def resume_or_return(job: TrainingJob, resume: bool) -> TrainingResult | None:
    """Return the result of a finished run; None when there is work to do.

    Raises
    ------
    ConfigError
        The folder holds a run that this one does not continue; the differing settings are named.
    """
    record = _read_record(job)
    if record is None:
        return None
    if record["dataset"] != job.dataset_digest:
        raise ConfigError(
            f"{job.output_uri} holds a run on another dataset; choose another output or delete it"
        )
    changed = job.spec.differences(record["spec"])
    if record["digest"] == job.digest:
        if record["result"]:
            return TrainingResult(**record["result"])
        _say_changes(job, record["spec"], changed)
        return None
    learned = [name for name in changed if name not in RUNTIME]
    if not resume or FIXED.intersection(learned):
        held = ", ".join(sorted(FIXED.intersection(learned))) if resume else ", ".join(learned)
        step = "choose another output" if resume else "choose another output, or resume it"
        raise ConfigError(f"{job.output_uri} holds a run with other settings ({held}); {step}")
    _say_changes(job, record["spec"], changed)
    return None


def write_record(job: TrainingJob, result: TrainingResult | None) -> None:
    """Keep what a run is, and what it came to once it has ended."""
    record = {
        "digest": job.digest,
        "dataset": job.dataset_digest,
        "spec": plain(job.spec),
        "result": asdict(result) if result else None,
    }
    data = (json.dumps(record, indent=2) + "\n").encode()
    write_bytes(join_uri(job.output_uri, _RECORD), data, job.options)


def _say_changes(job: TrainingJob, before: Mapping[str, Any], names: list[str]) -> None:
    if not names:
        return
    after = plain(job.spec)
    changes = ", ".join(f"{name} {before.get(name)!r} -> {after[name]!r}" for name in names)
    logger.warning("%s resumes with other settings: %s", job.output_uri, changes)


def _read_record(job: TrainingJob) -> dict[str, Any] | None:
    where = join_uri(job.output_uri, _RECORD)
    try:
        record: dict[str, Any] = json.loads(read_bytes(where, job.options))
    except NotFoundError:
        return None
    except ValueError as error:
        raise ConfigError(f"{where} is not JSON ({error}); delete the run's folder") from error
    if not {"digest", "dataset", "spec", "result"} <= set(record):
        raise ConfigError(f"{where} is not a training run's record; choose another output")
    return record
