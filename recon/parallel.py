"""Work on many frames at once without holding many frames."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def in_order(function: Callable[[Item], Value], items: Iterable[Item], num_workers: int = 0) -> Iterator[Value]:
    """Yield `function` of each item in order, from threads that never run further ahead than one value per worker.

    The items themselves are made by the thread that asks. 0 workers means as many as there are processors.
    """
    num_workers = num_workers or os.cpu_count() or 1
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
