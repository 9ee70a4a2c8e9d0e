"""Limits of numbers hold for whoever makes a specification; printable text is safe to print."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets.spec import SplitRule
from pipeline.indexing.spec import IndexSpec
from pipeline.tiles.spec import TileRules
from storage.errors import ConfigError
from storage.values import printable


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


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zürich 東京 a+b%20c#1", "Zürich 東京 a+b%20c#1"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\nb\r\tc", "a\\nb\\r\\tc"),
        ("\u202egnp.exe\u2066", "\\u202egnp.exe\\u2066"),
        ("sur\ud800id", "sur\\ud800id"),
        ("\x9b31m\x7f\u2028", "\\x9b31m\\x7f\\u2028"),
        ("", ""),
    ],
)
def test_text_that_could_move_the_cursor_is_escaped(text, shown):
    assert printable(text) == shown


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_printable_text_can_be_written_and_stays(text):
    shown = printable(text)
    assert shown.isprintable()
    assert shown.encode().decode() == shown
    assert printable(shown) == shown
