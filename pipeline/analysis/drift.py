"""Drift: whether some rows of an archive are distributed differently from all the others.

New sensors, processing baselines and seasons move embeddings. The rows of each month, of each side
of a date, or of those added since a snapshot are compared with all other rows, by the distance of
their means (over every row, one pass with Dask) and by the maximum mean discrepancy of uniform
samples, with the p-value of a permutation test.
"""

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from dask.delayed import delayed

from pipeline.analysis.periods import PeriodKind, period_of
from pipeline.runtime.dask import Scheduler, compute
from storage.archive.reader import Archive
from storage.archive.samples import live_rows
from storage.errors import ConfigError
from storage.progress import Progress, ProgressSink, ignore

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_TASKS_PER_GRAPH = 64
FEWEST_ROWS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftSpec:
    """How drift is judged.

    Parameters
    ----------
    sample_rows
        Rows drawn from a group, and from the rest, for the test. Smaller effects show in more.
    permutations
        Random divisions of the two samples that the true one is compared with.
    alpha
        Chance of calling any group drifted when none is; divided among the groups.
    seed
        Decides samples and permutations.
    """

    sample_rows: int = 1000
    permutations: int = 999
    alpha: float = 0.01
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupDrift:
    """Difference between a group of rows and the rest.

    Attributes
    ----------
    name
        Of the group.
    rows
        Number of rows in the group.
    mean_shift
        Distance between the mean embedding of the group and that of the rest, over all rows; 0
        to 2.
    mmd
        Squared maximum mean discrepancy of the samples, unbiased: around 0 without drift. None
        when the group or the rest has fewer than 20 rows.
    p_value
        Share of random divisions with at least this discrepancy; None as ``mmd``.
    drifted
        Whether the p-value is below ``alpha`` divided by the number of groups.
    """

    name: str
    rows: int
    mean_shift: float
    mmd: float | None
    p_value: float | None
    drifted: bool


def measure_drift(
    archive: Archive,
    groups: npt.NDArray[np.int32],
    names: Sequence[str],
    spec: DriftSpec | None = None,
    *,
    scheduler: Scheduler = "threads",
    progress: ProgressSink = ignore,
) -> tuple[GroupDrift, ...]:
    """Compare the rows of each group with all others.

    Parameters
    ----------
    groups
        Number of the group of each live row, in the order of ``archive.to_dask()``; int32 (n,).
    names
        Of the groups. Two groups are compared once: the second with the first.

    Raises
    ------
    ConfigError
        No group and its rest have 20 rows each.

    Notes
    -----
    Memory: a few bytes a row, one chunk of the archive a task, and the samples.
    """
    spec = spec or DriftSpec()
    counts = np.bincount(groups, minlength=len(names))
    compared = [1] if len(names) == 2 else list(range(len(names)))
    tested = [g for g in compared if min(counts[g], len(groups) - counts[g]) >= FEWEST_ROWS]
    if not tested:
        raise ConfigError(
            f"drift needs {FEWEST_ROWS} rows in a group and as many in the rest; "
            f"{len(groups):,} rows make {len(names)} groups ({', '.join(names[:3])}); "
            "choose other periods or dates"
        )
    sums = _sums(archive, groups, len(names), scheduler, progress)
    rng = np.random.default_rng(spec.seed)
    found = []
    for group in compared:
        rows, rest = np.flatnonzero(groups == group), np.flatnonzero(groups != group)
        mean, others = sums[group] / len(rows), (sums.sum(0) - sums[group]) / len(rest)
        mmd = p_value = None
        if group in tested:
            x, y = (_sample(archive, part, spec, rng, scheduler) for part in (rows, rest))
            mmd, p_value = two_sample_test(x, y, spec.permutations, rng)
        found.append(
            GroupDrift(
                name=names[group],
                rows=len(rows),
                mean_shift=float(np.linalg.norm(mean - others)),
                mmd=mmd,
                p_value=p_value,
                drifted=p_value is not None and bool(p_value < spec.alpha / len(tested)),
            )
        )
    return tuple(found)


def groups_by_period(
    archive: Archive, kind: PeriodKind
) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """Return the group of each live row by the period of its acquisition, and the names."""
    times = _times(archive)
    months, place = np.unique(times.astype("datetime64[M]"), return_inverse=True)
    firsts = [dt.datetime.combine(month.item(), dt.time(), dt.UTC) for month in months]
    labels = [period_of(first, kind)[0] for first in firsts]
    names = tuple(dict.fromkeys(labels))
    number = np.array([names.index(label) for label in labels], np.int32)
    return number[place], names


def groups_by_date(
    archive: Archive, date: dt.datetime
) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """Return 1 for each live row acquired on or after a moment, 0 for the others, and the names."""
    moment = np.datetime64(date.astimezone(dt.UTC).replace(tzinfo=None), "ms")
    names = (f"before {date:%Y-%m-%d}", f"from {date:%Y-%m-%d}")
    return (_times(archive) >= moment).astype(np.int32), names


def groups_by_snapshot(
    archive: Archive, earlier: Archive
) -> tuple[npt.NDArray[np.int32], tuple[str, ...]]:
    """Return 1 for each live row that an earlier snapshot does not show, 0 for the others."""
    rows, before = live_rows(archive), live_rows(earlier)
    return (~np.isin(rows, before)).astype(np.int32), (f"in {earlier.snapshot}", "since then")


def two_sample_test(
    x_ND: Float64, y_MD: Float64, permutations: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the squared MMD of two samples, and how often chance gives as much.

    The kernel is Gaussian, as wide as the median distance within the two samples together. The
    test is exact: without drift, the p-value is below any level at most that often.

    Parameters
    ----------
    x_ND, y_MD
        float64 (n, D) and (m, D).

    References
    ----------
    Gretton et al. (2012), A Kernel Two-Sample Test, JMLR 13.
    """
    z = np.concatenate([x_ND, y_MD])
    squares = (z**2).sum(1)
    distances = np.maximum(squares[:, None] + squares - 2 * (z @ z.T), 0)
    apart = distances[np.triu_indices(len(z), 1)]
    width = float(np.median(apart[apart > 0])) if apart.any() else 1.0
    kernel = np.exp(-distances / width)
    np.fill_diagonal(kernel, 0)
    n, m = len(x_ND), len(y_MD)
    in_x = np.zeros((permutations + 1, len(z)))
    in_x[0, :n] = 1
    for division in in_x[1:]:
        division[rng.permutation(len(z))[:n]] = 1
    to_x = in_x @ kernel
    within_x = (to_x * in_x).sum(1)
    between = to_x.sum(1) - within_x
    within_y = kernel.sum() - within_x - 2 * between
    mmd = within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2 * between / (n * m)
    as_far = np.count_nonzero(mmd[1:] >= mmd[0] - 1e-12)
    return float(mmd[0]), (1 + as_far) / (permutations + 1)


def _times(archive: Archive) -> npt.NDArray[np.datetime64]:
    """Return the time of each live row, datetime64[ms] (n,)."""
    [times] = compute([archive.to_dask("datetime")])
    milliseconds: npt.NDArray[np.datetime64] = times.astype("datetime64[ms]")
    return milliseconds


def _sums(
    archive: Archive,
    groups: npt.NDArray[np.int32],
    count: int,
    scheduler: Scheduler,
    progress: ProgressSink,
) -> Float64:
    """Return the sum of the embeddings of each group, float64 (groups, D)."""
    lazy = archive.to_dask("embedding")
    blocks, edges = lazy.to_delayed().ravel(), np.cumsum([0, *lazy.chunks[0]])
    total = np.zeros((count, lazy.shape[1]))
    for start in range(0, len(blocks), _TASKS_PER_GRAPH):
        stop = min(start + _TASKS_PER_GRAPH, len(blocks))
        tasks = [
            delayed(_group_sums)(blocks[index], groups[edges[index] : edges[index + 1]], count)
            for index in range(start, stop)
        ]
        total += np.sum(compute(tasks, scheduler), axis=0)
        progress(Progress(stage="means", done=stop, total=len(blocks), unit="chunks"))
    return total


def _group_sums(
    vectors: npt.NDArray[np.float16], groups: npt.NDArray[np.int32], count: int
) -> Float64:
    members = groups[None] == np.arange(count)[:, None]
    sums: Float64 = members.astype(np.float64) @ vectors.astype(np.float64)
    return sums


def _sample(
    archive: Archive,
    positions: Int64,
    spec: DriftSpec,
    rng: np.random.Generator,
    scheduler: Scheduler,
) -> Float64:
    """Return the embeddings of a uniform sample of rows, float64 (n, D)."""
    size = min(spec.sample_rows, len(positions))
    drawn = np.sort(rng.choice(positions, size, replace=False))
    [vectors] = compute([archive.to_dask("embedding")[drawn]], scheduler)
    sample: Float64 = vectors.astype(np.float64)
    return sample
