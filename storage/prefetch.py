"""Threads that prepare the next values while the reader works on the present value."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def prefetch(work: Callable[[A], B], values: Iterable[A], ahead: int = 1) -> Iterator[B]:
    """Yield the result of ``work`` for each value, in order; the next results are made meanwhile.

    At most ``ahead + 1`` results are in memory: the yielded result and the next ones, each made by
    a thread of its own. An exception of ``work`` is raised in place of the result.

    Examples
    --------
    >>> list(prefetch(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    with ThreadPoolExecutor(ahead, "ahead") as threads:
        waiting: deque[Future[B]] = deque()
        for value in values:
            waiting.append(threads.submit(work, value))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
