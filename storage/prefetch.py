"""A thread that prepares the next value while the reader works on the present value."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def prefetch(work: Callable[[A], B], values: Iterable[A]) -> Iterator[B]:
    """Yield the result of ``work`` for each value, in order; the next result is made meanwhile.

    At most two results are in memory: the yielded result and the next one. An exception of ``work``
    is raised in place of the result.

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
