"""Choose the kind of an index by what it finds and costs on some of the archive's rows."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from pipeline.indexing.plan import FLAT_ROWS, IndexPlan
from pipeline.indexing.spec import IndexSpec
from storage.archive.reader import Archive
from storage.index.kinds import Kind
from storage.index.pilot import Estimate, Pilot
from storage.index.quantizer import ShardParameters
from storage.index.ranking import Float32

PILOT_ROWS = 16_384
_RUN_ROWS = 1024
_LEAST_ROWS = 256
_NEARLY_AS_FAST = 1.2


def piloted(
    archive: Archive, spec: IndexSpec, plan: Callable[[ShardParameters | None], IndexPlan]
) -> IndexPlan:
    """Return a plan with its expected recall and the candidates per hit that it needs.

    Kind ``auto`` becomes the fastest of the kinds that fit and reach the recall. An exact kind that
    was asked for, and an archive of few rows, need no pilot.

    Parameters
    ----------
    archive, spec
        The rows and the request.
    plan
        Returns the plan of one of its contenders; None for the most exact of them.
    """
    first = plan(None)
    choose = spec.kind == "auto" and first.rows > FLAT_ROWS
    if first.rows <= _LEAST_ROWS or not (choose or first.parameters.lossy):
        return first
    pilot = Pilot(_pilot_rows(archive, spec.seed), first.rows, archive.spec.parts)
    estimates = tuple(
        pilot.estimate(parameters, spec.recall, first.sample_rows, rerank=spec.rerank)
        for parameters in (_measured(first.contenders) if choose else [first.parameters])
    )
    best = fastest(estimates, spec.recall, first.rows)
    return replace(with_estimate(plan(best.parameters), best), estimates=estimates)


def with_estimate(plan: IndexPlan, estimate: Estimate) -> IndexPlan:
    """Return a plan with what the pilot measured of its kind."""
    return replace(
        plan,
        rerank=estimate.rerank,
        recall_ceiling=estimate.recall_ceiling,
        estimate=estimate,
    )


def fastest(estimates: Sequence[Estimate], target: float, rows: int) -> Estimate:
    """Return the kind to build: the most exact of the fastest that reach the recall.

    Parameters
    ----------
    estimates
        Most exact first.
    target
        The recall; where no kind reaches it, the one with the highest recall is returned.
    rows
        Number of rows of the index.
    """
    enough = [estimate for estimate in estimates if estimate.recall >= target]
    if not enough:
        return max(estimates, key=lambda estimate: estimate.recall)
    least = min(estimate.query_us(rows) for estimate in enough)
    return next(e for e in enough if e.query_us(rows) <= _NEARLY_AS_FAST * least)


def _measured(contenders: Sequence[ShardParameters]) -> list[ShardParameters]:
    """Return the contenders that are worth measuring: of each kind the most exact that fits.

    Of `ivf_pq4` also the one of half as many bytes, which is faster where more candidates make up
    for it. `ivf_opq` takes long to train and to search, so it is measured only where nothing else
    fits.
    """
    of_kind: dict[Kind, ShardParameters] = {}
    measured = []
    for parameters in contenders:
        most_exact = of_kind.setdefault(parameters.kind, parameters)
        half = parameters.kind == "ivf_pq4" and 2 * parameters.pq_bytes == most_exact.pq_bytes
        if parameters is most_exact or half:
            measured.append(parameters)
    others = [parameters for parameters in measured if parameters.kind != "ivf_opq"]
    return others or measured


def _pilot_rows(archive: Archive, seed: int) -> Float32:
    """Return vectors (n, D) of runs of rows that start anywhere: few pieces of the archive."""
    live = [archive.live_rows(segment.ordinal) for segment in archive.segments]
    ends = np.cumsum([len(rows) for rows in live])
    starts = np.arange(0, ends[-1], _RUN_ROWS)
    count = min(PILOT_ROWS // _RUN_ROWS, len(starts))
    runs = []
    for start in np.sort(np.random.default_rng(seed).choice(starts, count, replace=False)).tolist():
        segment = int(np.searchsorted(ends, start, side="right"))
        first = start - int(ends[segment] - len(live[segment]))
        runs.append(live[segment][first : first + _RUN_ROWS])
    rows = archive.read(np.concatenate(runs), ["embedding"])["embedding"]
    return np.asarray(rows, dtype=np.float32)
