"""The bounded runner finds what it is there to find."""

import random
import time

from storage.errors import ConfigError
from tests.support.fuzz import Fault, faults_of, mutate_bytes, mutate_document


def _target(seed: int) -> object:
    if seed == 1:
        raise ConfigError("refused")
    if seed == 2:
        raise TypeError("a bug")
    if seed == 3:
        time.sleep(60)
    if seed == 4:
        block = bytearray(300 << 20)
        time.sleep(60)
        return block
    return seed


def test_errors_late_and_large_cases_are_faults_and_the_others_go_on() -> None:
    faults = faults_of(_target, range(7), limit_s=1.0, limit_bytes=250 << 20)
    assert [f.seed for f in faults] == [2, 3, 4]
    assert "TypeError: a bug" in faults[0].what
    assert faults[1:] == [Fault(3, "late"), Fault(4, "large")]


def test_mutations_repeat_with_their_seed_and_leave_the_original_alone() -> None:
    document = {"a": [1, {"b": "text"}], "c": None}
    data = bytes(range(256)) * 4
    for seed in range(200):
        first, second = (mutate_document(document, random.Random(seed)) for _ in range(2))
        assert repr(first) == repr(second)
        assert mutate_bytes(data, random.Random(seed)) == mutate_bytes(data, random.Random(seed))
    assert document == {"a": [1, {"b": "text"}], "c": None}
    assert len({repr(mutate_document(document, random.Random(s))) for s in range(200)}) > 100
