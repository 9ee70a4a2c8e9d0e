"""Known changes in real series: how well each way to compare two dates finds them.

    python -m benchmarks.change ARCHIVE...

An archive holds scenes of the same ground on different dates. Of each pair of dates, one place in
twenty gets the later vector of another place, ten times; the figure is the average precision with
which the changed places are found. Nothing of the places themselves is labelled, so real changes
between the dates count as errors.
"""

import argparse
from collections.abc import Iterator
from itertools import combinations

import numpy as np
import numpy.typing as npt

from pipeline.search.movement import centred_angle
from storage.archive.reader import Archive

Float64 = npt.NDArray[np.float64]
DRAWS, SHARE = 10, 20


def main() -> None:
    """Print the mean average precision of both ways for each archive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", nargs="+")
    print("archive | pairs of dates | places | cosine distance | mean of each date subtracted")
    for uri in parser.parse_args().archive:
        precisions, places = [], set()
        for before, after in date_pairs(Archive.open(uri)):
            places.add(len(before))
            precisions.append(planted(before, after, np.random.default_rng(0)))
        plain, centred = np.mean(precisions, axis=0)
        print(f"{uri} | {len(precisions)} | {min(places)} | {plain:.3f} | {centred:.3f}")


def date_pairs(archive: Archive) -> Iterator[tuple[Float64, Float64]]:
    """Yield the unit vectors (n, D) of the same places in each two scenes."""
    rows = archive.read_all(["embedding", "scene", "tile_key"])
    vectors = rows["embedding"].astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for pair in combinations(sorted(set(rows["scene"])), 2):
        chosen = [np.flatnonzero(rows["scene"] == scene) for scene in pair]
        keys = [rows["tile_key"][numbers] for numbers in chosen]
        _, *places = np.intersect1d(*keys, return_indices=True)
        first, second = (vectors[numbers[at]] for numbers, at in zip(chosen, places, strict=True))
        yield first, second


def planted(before: Float64, after: Float64, rng: np.random.Generator) -> tuple[float, float]:
    """Return the average precision by cosine distance and by the centred angle."""
    count = len(before)
    scores = []
    for _ in range(DRAWS):
        order = rng.permutation(count)
        size = max(count // SHARE, 1)
        changed, others = order[:size], order[size : 2 * size]
        later = after.copy()
        later[changed] = after[others]
        truth = np.isin(np.arange(count), changed)
        plain = 1 - np.einsum("nd,nd->n", before, later)
        centred = centred_angle(before, later, before.mean(0), later.mean(0))
        scores.append([average_precision(truth, values) for values in (plain, centred)])
    plain_mean, centred_mean = np.mean(scores, axis=0).tolist()
    return plain_mean, centred_mean


def average_precision(truth: npt.NDArray[np.bool_], values: Float64) -> float:
    """Return the mean of the precision at each true item, the largest values first."""
    ranked = truth[np.argsort(-values, kind="stable")]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float(precision[ranked].mean())


if __name__ == "__main__":
    main()
