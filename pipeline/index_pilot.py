"""What recall a kind can reach, before it is built: a pilot on some of the archive's rows.

Kinds that lose precision find the right rows only as far as their stored approximations rank them
among the candidates that are rescored. The pilot stores some rows so, asks for others of them with
every list probed, and compares with the exact answers. Fewer rows are easier to tell apart than
all of them, so the candidates per result are chosen with room to spare.
"""

from dataclasses import replace

import numpy as np

from pipeline.index_plan import IndexPlan, IndexSpec
from storage.archive import Archive
from storage.quantizers import PQ_CODEWORDS, ShardParameters, proposals, set_threads, train
from storage.ranking import Float32

PILOT_ROWS = 16_384
_RUN_ROWS = 1024
_QUERIES = 128
_FOUND = 10
_RERANKS = (4, 16, 64)


def with_pilot(archive: Archive, plan: IndexPlan, spec: IndexSpec) -> IndexPlan:
    """Return the plan with its expected recall and the candidates per result that it needs."""
    if not plan.parameters.lossy or plan.rows <= PQ_CODEWORDS:
        return plan
    rows = _pilot_rows(archive, spec.seed)
    recalls = pilot_recall(rows, plan.parameters, (1, *_RERANKS))
    if plan.rerank == 1:
        return replace(plan, recall_ceiling=recalls[1])
    wanted = (1 + spec.recall) / 2
    enough = next((n for n in _RERANKS if recalls[n] >= wanted), _RERANKS[-1])
    return replace(plan, rerank=enough, recall_ceiling=recalls[enough])


def pilot_recall(
    rows: Float32, parameters: ShardParameters, reranks: tuple[int, ...]
) -> dict[int, float]:
    """Return recall@10 by candidates per result, with every list probed.

    Parameters
    ----------
    rows
        Vectors (n, D) of the pilot, n above 256.
    parameters
        How they are stored; with fewer lists, as there are fewer rows.
    reranks
        Candidates per result that are rescored exactly.
    """
    set_threads(1)
    lists = max(min(parameters.nlist, len(rows) // 64), 1)
    trained = train(rows, replace(parameters, nlist=lists))
    queries = rows[:: max(len(rows) // _QUERIES, 1)]
    exact = queries @ rows.T
    least = -np.partition(-exact, _FOUND - 1, axis=1)[:, _FOUND - 1]
    depth = min(_FOUND * max(reranks), len(rows))
    found = proposals(trained, rows, queries, depth)
    right = np.take_along_axis(exact, found, axis=1) >= least[:, None]
    counts = {n: right[:, : _FOUND * n].sum(axis=1) for n in reranks}
    return {n: float(np.minimum(count, _FOUND).mean() / _FOUND) for n, count in counts.items()}


def _pilot_rows(archive: Archive, seed: int) -> Float32:
    """Return vectors (n, D) of runs of rows that start anywhere: few pieces of the archive."""
    live = [archive.live_rows(segment.ordinal) for segment in archive.segments]
    ends = np.cumsum([len(rows) for rows in live])
    runs = np.arange(0, ends[-1], _RUN_ROWS)
    drawn = np.random.default_rng(seed).choice(
        runs, size=min(PILOT_ROWS // _RUN_ROWS, len(runs)), replace=False
    )
    wanted = []
    for start in np.sort(drawn).tolist():
        segment = int(np.searchsorted(ends, start, side="right"))
        first = start - int(ends[segment] - len(live[segment]))
        wanted.append(live[segment][first : first + _RUN_ROWS])
    rows = archive.read(np.concatenate(wanted), ["embedding"])["embedding"]
    return np.asarray(rows, dtype=np.float32)
