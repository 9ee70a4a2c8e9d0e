"""Samples are uniform; drift is found where it is, and rarely where it is not."""

import datetime as dt
from pathlib import Path

import numpy as np
import pytest

from pipeline.analysis.drift import (
    DriftSpec,
    groups_by_date,
    groups_by_period,
    groups_by_snapshot,
    measure_drift,
    two_sample_test,
)
from storage.archive.maintenance import delete_scenes
from storage.archive.reader import Archive
from storage.archive.samples import live_rows, uniform_rows
from storage.errors import ConfigError
from tests.support.archive_world import add_scenes, create_archive

DIMENSION = 12


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """Three segments of about a month each; the last one's vectors lie elsewhere."""
    uri = str(tmp_path / "archive")
    create_archive(uri, DIMENSION)
    add_scenes(uri, {"a": 300, "b": 100}, seed=1)
    add_scenes(uri, {"c": 250, "gone": 50}, seed=2, days=31)
    shifted = np.random.default_rng(3).normal(0.4, 1, (200, DIMENSION)).astype(np.float32)
    add_scenes(uri, {"d": 200}, seed=3, days=400, embedding=shifted)
    delete_scenes(uri, ["gone"])
    return uri


def test_every_live_row_has_the_same_chance(uri: str):
    archive = Archive.open(uri)
    rows = live_rows(archive)
    assert len(rows) == len(archive) == 850
    drawn = np.zeros(len(rows))
    for seed in range(200):
        sample = uniform_rows(archive, 85, seed)
        assert len(np.unique(sample)) == 85
        drawn[np.searchsorted(rows, sample)] += 1
    assert drawn.sum() == 200 * 85
    # Each count is hypergeometric with mean 20: the sum of squares is close to chi-square.
    spread = ((drawn - 20) ** 2).sum() / (20 * 0.9)
    assert abs(spread - 850) < 5 * np.sqrt(2 * 850)
    np.testing.assert_array_equal(uniform_rows(archive, 85, 7), uniform_rows(archive, 85, 7))
    assert len(uniform_rows(archive, 10_000)) == 850


def test_the_rows_that_differ_are_found(uri: str):
    archive = Archive.open(uri)
    groups = np.repeat([0, 1], [650, 200]).astype(np.int32)
    [later] = measure_drift(archive, groups, ("others", "d"))
    assert (later.name, later.rows, later.drifted) == ("d", 200, True)
    vectors = np.asarray(archive.to_dask().compute(), np.float64)
    truth = np.linalg.norm(vectors[groups == 1].mean(0) - vectors[groups == 0].mean(0))
    assert later.mean_shift == pytest.approx(truth, abs=1e-9)
    assert later.p_value == 1 / 1000


def test_rows_are_split_at_a_date(uri: str):
    archive = Archive.open(uri)
    times = archive.to_dask("datetime").compute().astype("datetime64[ms]")
    middle = np.sort(times)[400].item().replace(tzinfo=dt.UTC)
    groups, names = groups_by_date(archive, middle)
    np.testing.assert_array_equal(groups, times >= np.datetime64(middle.replace(tzinfo=None)))
    assert names == (f"before {middle:%Y-%m-%d}", f"from {middle:%Y-%m-%d}")


def test_rows_added_since_a_snapshot(uri: str):
    first = Archive.open(uri).snapshots()[0][0]
    same = np.random.default_rng(8).normal(0, 1, (150, DIMENSION)).astype(np.float32)
    add_scenes(uri, {"new": 150}, seed=9, days=30, embedding=same)
    archive = Archive.open(uri)
    groups, names = groups_by_snapshot(archive, Archive.open(uri, first))
    assert groups.sum() == 150
    [added] = measure_drift(archive, groups, names)
    assert (added.name, added.rows) == ("since then", 150)


def test_periods_are_compared_each_with_the_rest(uri: str):
    archive = Archive.open(uri)
    groups, names = groups_by_period(archive, "year")
    times = archive.to_dask("datetime").compute().astype("datetime64[ms]")
    years = times.astype("datetime64[Y]").astype(str)
    assert [names[g] for g in groups] == years.tolist()
    found = measure_drift(archive, groups, names, DriftSpec(permutations=2000))
    assert any(one.drifted for one in found)
    assert sum(one.rows for one in found) == 850 or len(found) == 1


def test_too_few_rows_are_said_so(uri: str):
    archive = Archive.open(uri)
    with pytest.raises(ConfigError, match="850 rows make 1 groups"):
        measure_drift(archive, np.zeros(850, np.int32), ("2024",))
    groups = np.zeros(850, np.int32)
    groups[:5] = 1
    groups[5:30] = 2
    found = measure_drift(archive, groups, ("rest", "tiny", "small"), DriftSpec(permutations=99))
    assert [one.p_value is None for one in found] == [False, True, False]


def test_p_values_are_uniform_without_drift_and_small_with_it():
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(200):
        x, y = rng.normal(size=(30, 4)), rng.normal(size=(40, 4))
        p_values.append(two_sample_test(x, y, 99, rng)[1])
    shares = [np.mean(np.array(p_values) <= level) for level in (0.05, 0.2, 0.5)]
    np.testing.assert_allclose(shares, (0.05, 0.2, 0.5), atol=0.11)
    # The same mean, another spread: the shift of the means says nothing, the test does.
    x, y = rng.normal(size=(200, 4)), 2 * rng.normal(size=(200, 4))
    mmd, p_value = two_sample_test(x, y, 199, rng)
    assert p_value == 1 / 200
    assert mmd == pytest.approx(naive_mmd(x, y), rel=1e-9)


def naive_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate, term by term as the paper writes it."""
    z = np.concatenate([x, y])
    distances = ((z[:, None] - z[None]) ** 2).sum(-1)
    kernel = np.exp(-distances / np.median(distances[np.triu_indices(len(z), 1)]))
    n, m = len(x), len(y)
    xx, yy, xy = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    return float(
        (xx.sum() - np.trace(xx)) / (n * (n - 1))
        + (yy.sum() - np.trace(yy)) / (m * (m - 1))
        - 2 * xy.mean()
    )
