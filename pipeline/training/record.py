"""``run.json``: settings and result of a training run.

The record states its own SHA-256. It decides whether a folder holds the same run (continue, or
return the result), a run that may be resumed with other settings, or a different run (refused).
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from encoders.spec import read_bundle
from pipeline.training.spec import (
    FIXED,
    RUNTIME,
    TrainingJob,
    TrainingResult,
    plain,
)
from storage.errors import ConfigError, NotFoundError, SkysiftError
from storage.values import check_types, json_digest

logger = logging.getLogger(__name__)

_RECORD = "run.json"


def resume_or_return(job: TrainingJob, resume: bool) -> TrainingResult | None:
    """Return the result of a finished run; None for a run to start or to continue.

    Raises
    ------
    ConfigError
        The folder holds a different run; the message names the settings that differ.
    """
    record = _read_record(job)
    if record is None:
        return None
    if record["dataset"] != job.dataset_digest:
        raise ConfigError(
            f"{job.output} holds a run on another dataset; choose another output or delete it"
        )
    changed = job.spec.differences(record["spec"])
    rewritten = [
        f"source of {name}"
        for name, digest in job.sources.items()
        if name not in changed and record["sources"].get(name) != digest
    ]
    if record["digest"] == job.digest:
        if record["result"]:
            result = TrainingResult(**record["result"])
            if _is_there(job, result):
                return result
        _log_changes(job, record["spec"], changed)
        return None
    learned = [name for name in changed if name not in RUNTIME] + rewritten
    fixed = sorted(FIXED.intersection(learned)) + rewritten
    if not resume or fixed:
        names = fixed if resume else learned
        step = "choose another output" if resume else "choose another output, or resume it"
        raise ConfigError(
            f"{job.output} holds a run with other settings ({', '.join(names)}); {step}"
        )
    _log_changes(job, record["spec"], changed)
    return None


def write_record(job: TrainingJob, result: TrainingResult | None) -> None:
    """Write the settings of a run and, once it has ended, the result."""
    record: dict[str, Any] = {
        "digest": job.digest,
        "dataset": job.dataset_digest,
        "spec": plain(job.spec),
        "sources": dict(job.sources),
        "result": asdict(result) if result else None,
    }
    record["sha256"] = json_digest(record)
    (job.output / _RECORD).write((json.dumps(record, indent=2) + "\n").encode())


def _is_there(job: TrainingJob, result: TrainingResult) -> bool:
    """Tell whether the bundle and the table of a finished run are as the run wrote them."""
    try:
        found = read_bundle(job.bundle).fingerprint
        if found == result.fingerprint and job.history.exists():
            return True
        reason = f"{job.history} is missing"
        if found != result.fingerprint:
            reason = f"the bundle is {found[:16]}, the run made {result.fingerprint[:16]}"
    except SkysiftError as error:
        reason = str(error)
    logger.warning("finishing the run of %s again: %s", job.output, reason)
    return False


def _log_changes(job: TrainingJob, before: Mapping[str, Any], names: list[str]) -> None:
    if not names:
        return
    after = plain(job.spec)
    changes = ", ".join(f"{name} {before.get(name)!r} -> {after[name]!r}" for name in names)
    logger.warning("%s resumes with other settings: %s", job.output, changes)


def _read_record(job: TrainingJob) -> dict[str, Any] | None:
    where = job.output / _RECORD
    try:
        data = where.read()
    except NotFoundError:
        return None
    try:
        record: dict[str, Any] = json.loads(data)
        stated = record.pop("sha256", None)
        if stated not in (None, json_digest(record)):
            raise ValueError("its digest differs")
        if not isinstance(record["spec"], dict):
            raise TypeError("its settings are no mapping")
        if record["result"]:
            check_types(TrainingResult(**record["result"]))
        known = {name: record[name] for name in ("digest", "dataset", "spec", "result")}
        return known | {"sources": dict(record.get("sources", {}))}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{where} is damaged ({error}); delete the file, and the same command continues from "
            "the run's checkpoints"
        ) from error
