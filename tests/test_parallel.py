"""Work on threads: in order, never far ahead, and its errors reach whoever asked."""

from __future__ import annotations

import os
import threading
import time
import warnings

import numpy as np
import pytest

from recon.io.images import read_image, write_png
from recon.parallel import in_order, num_processors


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_values_come_in_the_order_of_their_items(num_workers):
    def late_where_even(item: int) -> int:
        time.sleep(0.002 * (item % 2 == 0))
        return item * item

    assert list(in_order(late_where_even, range(20), num_workers)) == [item * item for item in range(20)]
    assert list(in_order(late_where_even, (), num_workers)) == []


def test_items_are_made_by_who_asks_and_not_far_ahead():
    made, asking = [], threading.get_ident()

    def items():
        for item in range(50):
            assert threading.get_ident() == asking
            made.append(item)
            yield item

    taken = in_order(lambda item: item, items(), 2)
    for count in range(1, 10):
        next(taken)
        assert len(made) <= count + 2
    taken.close()
    assert len(made) < 15


def test_an_error_reaches_who_asks_at_its_place():
    def picky(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    taken = in_order(picky, range(100), 2)
    assert [next(taken) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(taken)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system gives no processors to processes")
def test_processors_are_those_of_this_process():
    given = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(given)})
        assert num_processors() == 1
    finally:
        os.sched_setaffinity(0, given)


def test_pictures_read_on_threads_leave_warnings_as_they_were(tmp_path):
    """Filters of warnings belong to the whole process; two threads that save and restore them would leave the other's."""
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for path in paths:
        write_png(path, np.zeros((64, 64, 3), np.uint8))
    before = list(warnings.filters)
    for _ in range(3):
        assert len(list(in_order(read_image, paths, 4))) == len(paths)
    assert list(warnings.filters) == before
