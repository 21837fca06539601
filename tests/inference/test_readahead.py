"""Reading ahead: in order, no more than memory allows, errors when their turn comes."""

from __future__ import annotations

import threading
import weakref

import pytest

from bimba.inference.readahead import read_ahead
from bimba.types import VideoDecodeError


def size(job: int) -> int:
    return 10


def test_results_come_in_the_order_of_the_jobs_whoever_is_faster():
    second_is_done = threading.Event()

    def read(job):
        if job == 0:
            assert second_is_done.wait(10)  # job 1 is read while job 0 is: by another worker
        if job == 1:
            second_is_done.set()
        return job * job

    assert list(read_ahead(range(5), read, size, 1000, workers=2)) == [(i, i * i) for i in range(5)]


def test_the_next_is_read_while_the_consumer_works():
    started = [threading.Event() for _ in range(3)]
    results = read_ahead(range(3), lambda job: started[job].set(), size, max_bytes=0, workers=1)
    next(results)
    assert started[1].wait(10)  # nobody has asked for it yet
    assert not started[2].is_set()  # max_bytes: nothing but a single one
    assert [job for job, _ in results] == [1, 2]


@pytest.mark.parametrize(("max_bytes", "workers", "most"), [(30, 8, 3), (1000, 2, 4), (0, 4, 1)])
def test_what_waits_is_bounded_by_bytes_and_workers(max_bytes, workers, most):
    read, handed_over, waiting = set(), 0, []
    lock = threading.Lock()

    def note(job):
        with lock:
            read.add(job)
            waiting.append(len(read) - handed_over)

    for _ in read_ahead(range(40), note, size, max_bytes, workers):
        with lock:
            handed_over += 1
    assert len(read) == 40
    assert max(waiting) <= most + 1  # one more: handed over, and not yet counted here


def test_a_video_that_cannot_be_decoded_is_a_result_and_other_errors_are_raised():
    def read(job):
        if job == 1:
            raise VideoDecodeError("broken")
        if job == 3:
            raise MemoryError("full")
        return job

    found = []
    with pytest.raises(MemoryError, match="full"):
        found.extend((job, str(result)) for job, result in read_ahead(range(6), read, size, 1000, 2))

    results = read_ahead(range(6), read, size, 1000, 2)
    assert [(job, str(next(results)[1])) for job in range(3)] == [(0, "0"), (1, "broken"), (2, "2")]
    results.close()


def test_who_stops_early_stops_the_reading():
    before = set(threading.enumerate())
    read = []
    results = read_ahead(range(100), read.append, size, 1000, workers=2)
    next(results)
    results.close()
    assert len(read) <= 6
    assert set(threading.enumerate()) <= before


def test_what_was_handed_over_is_the_consumers_alone():
    class Pixels:
        pass

    results = read_ahead(range(2), lambda job: Pixels(), size, 1000, workers=1)
    job, pixels = next(results)
    seen = weakref.ref(pixels)
    del pixels
    assert (job, seen()) == (0, None)
    results.close()


def test_no_jobs_are_no_results():
    assert list(read_ahead([], int, size, 10, 2)) == []
