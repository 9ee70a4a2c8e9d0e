"""Average precision of queries that learn from marks, and of the tiles that are marked next.

    python -m benchmarks.marks [--data ../shared/data] [--scratch work/marks]

Frozen features of two labelled sets, reduced to 128 dimensions: as they are, and centred, as the
head of an encoder does it. The goals are of those that are not centred: centred features make means
a better query. Each label of 40 images up to 60 % of all is a search; a mark is right when the
image has the label. Queries are scored by all images without a mark; sessions of marks by the half
of the images that is never marked. Each difference has its standard error over the draws of the
first marks; the labels are the same in all.

Accuracy checks are of detections after a session, with the labels in the place of the person. The
half that is never marked is too small for an archive, so each of its images stands for 100 rows; a
second archive has right rows only a tenth as often, for which no calibration was made.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score

from benchmarks.measure import Row, publish
from benchmarks.real_vectors import image_features, reduced
from pipeline.search.marks import (
    LEAST_MARKS,
    UNLABELLED_ROWS,
    Calibration,
    accuracies,
    calibrate,
    draw,
    expect,
    learned_vector,
    next_marks,
    stratify,
)

DIMENSION, SEEDS, SESSIONS, DETECTING = 128, 20, 10, 3
START, EACH, ROUNDS = 3, 10, 6
THRESHOLD, FLOOR, CHECKS, DRAWS = 0.5, 0.01, (40, 80, 160), 10
GOALS: dict[str, dict[int, float | None]] = {
    "UC Merced": {10: 2.6, 30: 4.6},
    "AID": {10: 4.0, 30: 6.3},
}
SESSION_GOALS = {16: 3.6, 56: 4.5}
ARCHIVES = {
    "UC Merced": "ucm_multilabel_256px.tar",
    "AID": "aid_multilabel_150px.tar",
}
Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Unit vectors (n, D) and labels (n, C) of a set; ``goals`` in points, by marks of a kind."""

    name: str
    goals: Mapping[int, float | None]
    vectors: Array
    labels: Array

    def searches(self) -> Iterator[tuple[int, Array]]:
        """Yield each label that is neither rare nor common, with its mask (n,)."""
        for number, has in enumerate(self.labels.T.astype(bool)):
            if 40 <= has.sum() <= 0.6 * len(has):
                yield number, has


def means(right: Array, wrong: Array) -> Array:
    """Return the query of before: the mean of the right marks minus half that of the wrong ones."""
    return np.asarray(right.mean(axis=0) - 0.5 * wrong.mean(axis=0))


def of_random_marks(data: Labelled, count: int, seeds: int) -> tuple[Array, Array]:
    """Return the average precision (seeds,) of learned queries and of means, each over all labels.

    ``count`` marks a kind.
    """
    found = []
    for number, has in data.searches():
        for seed in range(seeds):
            rng = np.random.default_rng([number, seed, count])
            right = rng.choice(np.flatnonzero(has), count, False)
            wrong = rng.choice(np.flatnonzero(~has), count, False)
            marked = np.concatenate([right, wrong])
            sample = np.setdiff1d(rng.choice(len(has), UNLABELLED_ROWS, False), marked)
            rest = np.setdiff1d(np.arange(len(has)), marked)
            yes, no = data.vectors[right], data.vectors[wrong]
            queries = learned_vector(yes, no, data.vectors[sample]), means(yes, no)
            scored = data.vectors[rest] @ np.stack(queries).T
            found.append([average_precision_score(has[rest], each) for each in scored.T])
    learned, before = np.reshape(found, (-1, seeds, 2)).mean(axis=0).T
    return learned, before


def best_hits(scores: Array, right: Array, wrong: Array, read: Any, count: int) -> Array:
    """Mark the best hits, as without suggestions."""
    return np.arange(count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A person who marks ten tiles at a time.

    ``learns`` says whether the query is learned from ten marks on, or stays that of means.
    """

    data: Labelled
    choose: Callable[..., Array]
    learns: bool

    def run(self, number: int, has: Array, seed: int) -> tuple[list[float], Array, Array]:
        """Return the average precision of each round, the marks and the sample of the archive."""
        vectors = self.data.vectors
        halves = np.random.default_rng(9).permutation(len(has))
        held, pool = halves[: len(has) // 2], np.sort(halves[len(has) // 2 :])
        rng = np.random.default_rng([number, seed])
        kinds = pool[has[pool]], pool[~has[pool]]
        marks = np.concatenate([rng.choice(kind, START, False) for kind in kinds])
        sample, curve = rng.choice(pool, UNLABELLED_ROWS, False), []
        for _ in range(ROUNDS):
            known = has[marks]
            query = self._query(marks, known, np.setdiff1d(sample, marks))
            curve.append(float(average_precision_score(has[held], vectors[held] @ query)))
            rest = np.setdiff1d(pool, marks)
            rest = rest[np.argsort(-(vectors[rest] @ query), kind="stable")]
            scores = vectors[marks] @ query

            def read(at: Array, rest: Array = rest) -> Array:
                return np.asarray(vectors[rest[at]])

            chosen = self.choose(vectors[rest] @ query, scores[known], scores[~known], read, EACH)
            before, marks = marks, np.concatenate([marks, rest[chosen]])
        return curve, before, np.setdiff1d(sample, before)

    def _query(self, marks: Array, known: Array, sample: Array) -> Array:
        vectors = self.data.vectors
        right, wrong = vectors[marks[known]], vectors[marks[~known]]
        if self.learns and len(marks) >= LEAST_MARKS:
            return np.asarray(learned_vector(right, wrong, vectors[sample]))
        query = means(right, wrong)
        return np.asarray(query / np.linalg.norm(query))


def curve_of(session: Session, sessions: int) -> Array:
    """Return the average precision (sessions, ROUNDS) of sessions, each over all labels."""
    curves = [
        [session.run(number, has, seed)[0] for seed in range(sessions)]
        for number, has in session.data.searches()
    ]
    return np.asarray(np.mean(curves, axis=0))


def compared(what: str, ours: Array, peer: Array, against: str, goal: float | None) -> Row:
    """Return the row of two average precisions (draws,); the ratio is the difference in points."""
    gain = 100 * (ours - peer)
    error = gain.std(ddof=1) / len(gain) ** 0.5 if len(gain) > 1 else np.nan
    return Row(
        what=what,
        ours=100 * float(ours.mean()),
        peer=100 * float(peer.mean()),
        unit="AP",
        against=against,
        ratio=float(gain.mean()),
        goal=goal,
        note=f"The ratio is the difference in points, with a standard error of {error:.2f} over "
        f"{len(gain)} draws.",
    )


def detections_of(data: Labelled, sessions: int) -> Iterator[tuple[Calibration, Array, Array]]:
    """Yield calibration, scores and truth of the images never marked, after each session."""
    session = Session(data=data, choose=next_marks, learns=True)
    held = np.random.default_rng(9).permutation(len(data.labels))[: len(data.labels) // 2]
    for number, has in data.searches():
        for seed in range(sessions):
            _, marks, sample = session.run(number, has, seed)
            known = has[marks]
            if min(known.sum(), (~known).sum()) < START:
                continue
            groups = data.vectors[marks[known]], data.vectors[marks[~known]], data.vectors[sample]
            calibration = calibrate(*groups)
            scores = data.vectors[held] @ learned_vector(*groups)
            if (calibration.probability(scores) >= THRESHOLD).any():
                yield calibration, scores, has[held]


def calibration_rows(data: Labelled, sessions: int) -> Iterator[Row]:
    """Yield how far expected precision and recall are from those of the images never marked.

    The rows of accuracy checks follow.
    """
    found, plain, rare = [], [], []
    for calibration, scores, truth in detections_of(data, sessions):
        probability = calibration.probability(scores)
        hit, said = probability >= THRESHOLD, expect(calibration, scores, THRESHOLD)
        precision, recall = truth[hit].mean(), truth[hit].sum() / truth.sum()
        found.append((said.precision, precision, said.recall, recall))
        plain.append(Detected.of(probability, truth, (100, 100)))
        rare.append(Detected.of(probability, truth, (10, 100)))
    said_p, true_p, said_r, true_r = np.array(found).T
    for name, said, true in (("precision", said_p, true_p), ("recall", said_r, true_r)):
        error = float(np.abs(said - true).mean())
        yield Row(
            what=f"{data.name}: expected {name} at a probability of 0.5, after 56 marks",
            ours=float(said.mean()),
            peer=float(true.mean()),
            unit="share",
            against="true share of images never marked",
            ratio=error,
            note=f"The ratio is the mean distance; expected minus true is "
            f"{float((said - true).mean()):+.3f}: expectations are cautious where negative.",
        )
    for count in CHECKS:
        yield from check_rows(data.name, plain, count)
    yield from check_rows(f"{data.name}, right rows a tenth as often", rare, CHECKS[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Detected:
    """Rows of an archive in which a session detects: probabilities, highest first, and truth."""

    probability: Array
    right: Array

    @classmethod
    def of(cls, probability: Array, right: Array, times: tuple[int, int]) -> "Detected":
        """Return rows above the floor; right and wrong images stand for ``times`` rows each."""
        rows = np.repeat(np.arange(len(right)), np.where(right, *times))
        rows = rows[probability[rows] >= FLOOR]
        rows = rows[np.argsort(-probability[rows], kind="stable")]
        return cls(probability=probability[rows], right=right[rows])

    def check(self, count: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """Draw and mark tiles; return truth and intervals (3, 2) of precision, recall and F1."""
        strata = stratify(self.probability, THRESHOLD, FLOOR)
        _, numbers = draw(strata, count)
        edges = np.cumsum([0, *(one.rows for one in strata)])
        marks = [
            self.right[rng.choice(np.arange(start, end), drawn, False)]
            for start, end, drawn in zip(edges, edges[1:], np.bincount(numbers), strict=False)
        ]
        found = accuracies(strata, [int(m.sum()) for m in marks], [int((~m).sum()) for m in marks])[
            0
        ]
        hit = self.right[: strata[0].rows].sum()
        every = max(self.right.sum(), 1)
        truth = np.array([hit / found.rows, hit / every, 2 * hit / (found.rows + every)])
        return truth, np.array([found.precision_interval, found.recall_interval, found.f1_interval])


def check_rows(name: str, found: Sequence[Detected], count: int) -> Iterator[Row]:
    """Yield how often the intervals of checks hold the truth, and how wide they are."""
    rng = np.random.default_rng(count)
    pairs = [one.check(count, rng) for one in found for _ in range(DRAWS)]
    truth, intervals = (np.stack(parts) for parts in zip(*pairs, strict=True))
    held = (intervals[..., 0] <= truth + 1e-9) & (truth - 1e-9 <= intervals[..., 1])
    wide = np.diff(intervals)[..., 0].mean(axis=0)
    for figure, shares, width in zip(("precision", "recall", "F1"), held.T, wide, strict=True):
        yield Row(
            what=f"{name}: 90 % interval of {figure} by a check of {count} tiles",
            ours=float(shares.mean()),
            unit="share that holds the truth",
            ratio=float(shares.mean()),
            note=f"Of {len(shares)} draws; mean width {width:.2f}.",
        )


def measured(data: Labelled, seeds: int = SEEDS, sessions: int = SESSIONS) -> Iterator[Row]:
    """Yield the rows of a set; ratios are differences in points of average precision."""
    for count, goal in data.goals.items():
        learned, before = of_random_marks(data, count, seeds)
        what = f"{data.name}: query of {count} right and {count} wrong marks"
        yield compared(what, learned, before, "mean of right - half the mean of wrong", goal)
    ours, learning, before = (
        curve_of(Session(data=data, choose=choose, learns=learns), sessions)
        for choose, learns in ((next_marks, True), (best_hits, True), (best_hits, False))
    )
    for marks, goal in SESSION_GOALS.items():
        at = (marks - 2 * START) // EACH
        for name, peer, wanted in (
            ("best hits of a query of means", before, goal if all(data.goals.values()) else None),
            ("best hits of a query that learns", learning, None),
        ):
            what = f"{data.name}: {marks} marks, suggested, beside {name}"
            yield compared(what, ours[:, at], peer[:, at], name, wanted)
    yield from calibration_rows(data, min(sessions, DETECTING))


def main(arguments: list[str] | None = None) -> int:
    """Measure, print the table and keep it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--full", action="store_true", help="no longer form")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--scratch", type=Path, default=Path("work/marks"))
    chosen = parser.parse_args(arguments)
    backbone = chosen.data / "weights/mobilenet_v2_imagenet_folded"
    rows: list[Row] = []
    for name, file in ARCHIVES.items():
        features, labels = image_features(chosen.data / file, backbone, chosen.scratch / name)
        features /= np.linalg.norm(features, axis=1, keepdims=True)
        for of, centred in ((name, False), (f"{name}, centred", True)):
            vectors = reduced(features, DIMENSION, centred=centred)
            goals = dict.fromkeys(GOALS[name]) if centred else GOALS[name]
            rows += measured(Labelled(name=of, goals=goals, vectors=vectors, labels=labels))
    publish("marks", rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
