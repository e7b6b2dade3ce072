"""Work on many frames at once without holding many frames."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def num_processors() -> int:
    """How many processors this process may use: of a shared machine, those that it was given."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable[[Item], Value], items: Iterable[Item], num_workers: int = 0) -> Iterator[Value]:
    """Yield `function` of each item in order, from threads that never run further ahead than one value per worker.

    The items themselves are made by the thread that asks. 0 workers means as many as there are
    processors to use.
    """
    num_workers = num_workers or num_processors()
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
