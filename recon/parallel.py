"""Work on many frames at once without holding many frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Value = TypeVar("Value")


def in_order(function: Callable[[Item], Value], items: Iterable[Item], num_workers: int) -> Iterator[Value]:
    """Yield `function` of each item in order, from threads that never run further ahead than one value per worker."""
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > num_workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
