"""How labelled rows are divided, and unlabelled rows labelled, as plain values."""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

from storage.errors import ConfigError
from storage.values import Count, Fraction, PositiveFraction, check_limits

Method = Literal["ramp", "cap", "band", "f1"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRule:
    """How rows without a split of their own are divided.

    Rows of one group share a split, which is drawn from a hash of the group's name, so it does not
    depend on order and a larger import keeps the split of the rows it had.

    Attributes
    ----------
    val
        Expected share of the validation rows.
    test
        Expected share of the test rows; what is left trains.
    seed
        Seed of the division.
    """

    val: Fraction = 0.15
    test: Fraction = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        check_limits(self, "split")
        if self.val + self.test >= 1:
            raise ConfigError(
                f"split: val {self.val} and test {self.test} must leave train rows; give less"
            )

    def of(self, group: str) -> str:
        """Return the split of a group.

        Examples
        --------
        >>> SplitRule(val=0.0, test=0.0).of("anything")
        'train'
        """
        digest = hashlib.sha256(f"{self.seed}:{group}".encode()).digest()
        draw = int.from_bytes(digest[:8]) / 2**64
        return "test" if draw < self.test else "val" if draw < self.test + self.val else "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class SoftLabelSpec:
    """How scores become probabilities.

    Attributes
    ----------
    method
        How ranks become probabilities. ``ramp``: 0 to 1 along the ranks around the class's share.
        ``cap``: a step at the share (class-aware pseudo-labels, the ramp of band 0). ``band``: 1
        above and 0 below the band, .5 inside it, as PercentMatch sets doubtful labels aside.
        ``f1``: a step at the score that has the best F1 on the labelled rows.
    band
        Half the width of the ramp or band, as a share of the class's share.
    neighbours
        Neighbours of a row in the graph.
    directions
        Numbers of half-whitened principal directions of the features; the ranks are averaged over
        them.
    rounds
        In each round after the first, a head learns from the probabilities so far, and the labels
        spread over its neighbours are a third score beside the two of the features. ``f1`` has one
        round.
    """

    method: Method = "ramp"
    band: PositiveFraction = 0.75
    neighbours: Count = 10
    directions: tuple[Count, ...] = (64, 128, 256, 512)
    rounds: Count = 1

    def __post_init__(self) -> None:
        check_limits(self, "soft labels")
        if not self.directions:
            raise ConfigError("soft labels: directions is empty; give numbers such as 128")
        if self.method not in get_args(Method):
            raise ConfigError(
                f"soft labels: method {self.method!r} is not {', '.join(get_args(Method))}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class SuggestSpec:
    """Which rows are suggested for labels.

    Attributes
    ----------
    rows
        Number of tiles to suggest.
    candidates
        Largest number of tiles among which they are chosen, drawn uniformly.
    classes
        Names of the classes of a first dataset; empty for those of the labelled dataset.
    seed
        Seed of the draw of the candidates.
    """

    rows: Count = 100
    candidates: Count = 10_000
    classes: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_limits(self, "suggest")
