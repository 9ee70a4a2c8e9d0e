"""How widely to look: in how many lists, in which, or in none because a scan is better."""

import math
from collections.abc import Sequence

import numpy as np

from storage.filters import Mask
from storage.ranking import Float32
from storage.shards import Probes, Selection, ShardGroup

Asked = tuple[ShardGroup, Selection]
"""A group, and its rows that may be returned."""
_FEW = 0.8  # of the rows: with more, hardly a list is without one
_MOST_LISTS = 0.95  # which of all lists these are is not worth asking
# Costs in nanoseconds, measured; only their ratios matter and only speed depends on them.
_TEST_ROW_NS, _SCORE_VALUE_NS, _DECODE_VALUE_NS, _MULTIPLY_NS = 1.5, 0.2, 5.0, 0.15


def lists_to_probe(queries: int, k: int, nprobe: int, asked: Sequence[Asked]) -> int | None:
    """Return how many lists to look into; None says that scanning the selected rows is better.

    Lists without a selected row do not count. Of the others so many are probed that about as many
    selected rows are seen as rows without a filter, and twice as many as wanted: a filter that
    selects whole clusters leaves few lists, one that selects here and there is probed widely.
    """
    nlist, dimension = asked[0][0].nlist, asked[0][0].dimension
    rows = sum(len(group.shards[i]) for group, selection in asked for i in selection.shards)
    matching = sum(selection.count for _, selection in asked)
    if nprobe >= nlist and any(group.reranks for group, _ in asked):
        return None
    among = _lists_in_question(asked)
    lists = nlist if among is None else int(np.count_nonzero(among))
    wanted = max(nprobe * rows / matching, 2 * k * nlist / matching)
    width = min(lists, math.ceil(wanted))
    if matching < sum(len(group) for group, _ in asked):
        held = sum(int(group.list_rows[among].sum()) for group, _ in asked)
        probing = _TEST_ROW_NS * held + _SCORE_VALUE_NS * dimension * matching
        scanning = _DECODE_VALUE_NS / queries + _MULTIPLY_NS
        if scanning * matching * dimension < probing * width / lists:
            return None
    return width


def nearest_lists(queries: Float32, width: int, asked: Sequence[Asked]) -> Probes:
    """Return the nearest lists of those that hold selected rows."""
    return asked[0][0].probes(queries, width, _lists_in_question(asked))


def _lists_in_question(asked: Sequence[Asked]) -> Mask | None:
    """Return which lists (nlist,) hold a selected row; None where hardly one does not."""
    rows = sum(len(group) for group, _ in asked)
    if sum(selection.count for _, selection in asked) >= rows * _FEW:
        return None
    among: Mask = np.logical_or.reduce([group.lists_with(selection) for group, selection in asked])
    return among if np.count_nonzero(among) < len(among) * _MOST_LISTS else None
