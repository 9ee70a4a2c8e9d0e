"""Work that is done in a thread while its reader is still busy with what came before."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def prefetch(work: Callable[[A], B], values: Iterable[A]) -> Iterator[B]:
    """Yield what ``work`` makes of each value, in order; the next one is made meanwhile.

    At most two results are in memory: the one that was yielded and the one after it. What ``work``
    raises is raised where its result would have come.

    Examples
    --------
    >>> list(prefetch(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    with ThreadPoolExecutor(1, "ahead") as thread:
        waiting: Future[B] | None = None
        for value in values:
            ready, waiting = waiting, thread.submit(work, value)
            if ready is not None:
                yield ready.result()
        if waiting is not None:
            yield waiting.result()
