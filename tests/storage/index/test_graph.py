"""Nearest neighbours of every row, against all pairs."""

import numpy as np
import pytest

from storage.index import graph


@pytest.mark.parametrize("exact", [True, False])
def test_neighbours_are_those_of_all_pairs(monkeypatch: pytest.MonkeyPatch, exact: bool):
    if not exact:
        monkeypatch.setattr(graph, "EXACT_ROWS", 100)  # all lists of 700 rows are probed
    z = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    z[5] = z[9]  # equal rows are each other's neighbours
    scores, positions = graph.nearest_neighbours(z, 4)
    cosine = z @ z.T
    np.fill_diagonal(cosine, -np.inf)
    np.testing.assert_allclose(scores, np.sort(cosine, 1)[:, :-5:-1], atol=1e-5)
    rows = np.arange(len(z))[:, None]
    np.testing.assert_allclose(cosine[rows, positions], scores, atol=1e-5)
    assert (positions[5, 0], positions[9, 0]) == (9, 5)


def test_more_neighbours_than_rows_are_all_others_even_of_equal_rows():
    z = np.ones((3, 2), np.float32) / np.sqrt(2)
    _, positions = graph.nearest_neighbours(z, 9)
    assert positions.shape == (3, 2)
    assert all(row not in found for row, found in enumerate(positions.tolist()))
