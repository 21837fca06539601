"""[6] Reading ahead: threads decode the next videos while the model works on this one.

Threads: each waits for a decoding process of its own (``data/isolated.py``), whose pixels need not be copied, and then
resizes them, where Pillow lets go of Python's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from bimba.types import VideoDecodeError

Job = TypeVar("Job")
Read = TypeVar("Read")


def read_ahead(
    jobs: Iterable[Job],
    read: Callable[[Job], Read],
    num_bytes: Callable[[Job], int],
    max_bytes: int,
    workers: int,
) -> Iterator[tuple[Job, Read | VideoDecodeError]]:
    """What ``read`` makes of each job, or why the video cannot be decoded, in the order of the jobs.

    Args:
        num_bytes: how large a job's result will be, known before it is read.
        max_bytes: results that wait and those being read sum to at most that, unless a single one is larger.
        workers: how many are read at a time; at most as many more wait.

    Raises:
        Exception: any other error of ``read``, when its job's turn comes.
    """
    remaining = deque(jobs)
    pending: deque[tuple[Job, Future[Read]]] = deque()

    def fits(job: Job) -> bool:
        waiting = sum(num_bytes(other) for other, _ in pending)
        return not pending or (len(pending) < 2 * workers and waiting + num_bytes(job) <= max_bytes)

    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="bimba-read") as pool:

        def submit() -> None:
            while remaining and fits(remaining[0]):
                job = remaining.popleft()
                pending.append((job, pool.submit(read, job)))

        try:
            submit()
            while pending:
                job, reading = pending[0]
                error = reading.exception()  # waits
                pending.popleft()  # from here on its memory is the consumer's
                if error is not None and not isinstance(error, VideoDecodeError):
                    raise error
                submit()
                handed_over = [error if error is not None else reading.result()]
                del reading, error  # or it would stay in memory for as long as it is worked on
                yield job, handed_over.pop()
        finally:
            pool.shutdown(cancel_futures=True)
