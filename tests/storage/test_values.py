"""Limits of numbers in specifications hold for whoever makes one."""

import pytest

from pipeline.datasets.spec import SplitRule
from pipeline.indexing.spec import IndexSpec
from pipeline.tiles.spec import TileRules
from storage.errors import ConfigError


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: IndexSpec(shards=0), "index: shards is 0; give at least 1"),
        (lambda: IndexSpec(recall=0.0), "index: recall is 0.0; give a value in (0, 1]"),
        (lambda: TileRules(min_valid_fraction=1.5), "give a value in [0, 1]"),
        (lambda: SplitRule(val=-0.1), "split: val is -0.1"),
        (lambda: SplitRule(val=0.5, test=0.5), "must leave train rows"),
    ],
)
def test_a_number_outside_its_limits_is_refused_with_its_name(make, text):
    with pytest.raises(ConfigError) as caught:
        make()
    assert text in str(caught.value)
