"""Coverage against the plain greedy choice."""

import numpy as np

from pipeline.datasets.coverage import covering_rows


def test_lazy_choices_are_those_of_the_plain_greedy_rule():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(300, 6)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    known, candidates = vectors[:20], vectors[20:]
    reached = np.maximum((candidates @ known.T).max(1), 0)
    expected = []
    for _ in range(25):
        gains = np.maximum(candidates @ candidates.T - reached[:, None], 0).sum(0)
        gains[expected] = -1
        expected.append(int(gains.argmax()))
        reached = np.maximum(reached, candidates @ candidates[expected[-1]])
    assert covering_rows(candidates, known, 25).tolist() == expected


def test_equal_rows_and_more_rows_than_there_are():
    vectors = np.tile(np.array([[1, 0]], np.float32), (5, 1))
    assert sorted(covering_rows(vectors, vectors[:0], 9).tolist()) == [0, 1, 2, 3, 4]
