"""A run of several processes ends as one: if one fails, the others follow within seconds, and one error is told.

Without this they would wait for it in the next exchange: with NCCL for ``trainer.strategy.timeout_s``, as nothing tells
them that it is gone. The processes share a small store that torch keeps to bring them together. The first that fails
leaves its number there; a thread of each of the others looks for one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.distributed.distributed_c10d import _get_default_store

from bimba.training.signals import Stopped
from bimba.types import BimbaError

POLL_S = 1.0
GRACE_S = 10.0  # until a process that stands in an exchange, or does not get out, is ended

_KEY = "bimba/failed"


class Failed(Exception):
    """One process of several has failed, and so has the run.

    Attributes:
        error: this process's own, which others have said nothing of; None if another process failed before it.
        status: what this process is to exit with. Lightning kills the first process at once, whatever it is saving,
            if another one that it started seems to have failed; so that one seems to have not.
    """

    def __init__(self, error: BaseException | None, status: int):
        super().__init__("another process failed" if error is None else str(error))
        self.error = error
        self.status = status


@contextmanager
def ending_together(trainer: L.Trainer) -> Iterator[None]:
    """Around all that the processes do together; does nothing for a single one.

    Raises:
        Failed: in the place of what was raised within, but for ``Stopped``, which all processes raise.
    """
    if trainer.world_size == 1:
        yield
        return
    watch = _Watch(trainer)
    watch.start()
    try:
        yield
    except Stopped:
        watch.stop()
        raise
    except BaseException as error:
        own = watch.is_first_to_fail()
        if trainer.is_global_zero:
            time.sleep(2.5 * POLL_S)  # the store ends with this process, and the others are to know why
        watch.leave()
        raise Failed((_described(error) if own else None), watch.status) from error
    watch.stop()


def _described(error: BaseException) -> BaseException:
    """The error, or what it means if it only says that another process cannot be reached."""
    if not isinstance(error, dist.DistError) and "gloo" not in str(error):
        return error
    gone = BimbaError(
        f"Another process of this run cannot be reached, so it ends ({(str(error).splitlines() or [''])[0]}). If that "
        "process has left no message, it was killed: the machine's log (dmesg) says so if memory was short."
    )
    gone.__cause__ = error
    return gone


class _Watch:
    """Knows whether any process has failed; ends this one if it does not end by itself."""

    def __init__(self, trainer: L.Trainer):
        self.trainer = trainer
        environment: Any = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        is_lightnings = isinstance(environment, LightningEnvironment) and trainer.local_rank > 0
        self.status = 0 if is_lightnings else 1
        self._is_over = threading.Event()
        self._left_s: float | None = None
        self._failed_elsewhere = False

    def start(self) -> None:
        threading.Thread(target=self._run, name="ending-together", daemon=True).start()

    def stop(self) -> None:
        self._is_over.set()

    def leave(self) -> None:
        """From now on this process is on its way out, and must not take long."""
        self._left_s = time.monotonic()

    def is_first_to_fail(self) -> bool:
        """Says that this process has failed; whether it is the one whose error is to be told."""
        if not dist.is_initialized():
            self.status = 1  # the first process may be waiting for this one, and nobody else can end it
            return True
        try:
            first = _get_default_store().compare_set(_KEY, "", str(self.trainer.global_rank))
        except RuntimeError:  # it ended with the first process
            return not self._failed_elsewhere and self.trainer.global_rank == 1  # one of those that are left
        return int(first) == self.trainer.global_rank

    def _run(self) -> None:
        while not dist.is_initialized():
            if self._is_over.wait(POLL_S / 10):
                return
        try:
            store = _get_default_store().clone()  # a connection of its own: torch waits in the other one
        except RuntimeError:  # the first process is gone already, while this one is being set up with it
            return
        waits_since_s: float | None = None
        while not self._is_over.wait(POLL_S):
            now_s = time.monotonic()
            if self._left_s is not None:
                if now_s - self._left_s > GRACE_S:
                    self._exit()
                continue
            if not self._has_failed(store):
                continue
            if waits_since_s is None or self.trainer.interrupted:  # it may be saving what there is
                waits_since_s = now_s
            elif now_s - waits_since_s > GRACE_S:
                if not self._failed_elsewhere and self.trainer.global_rank == 1:
                    os.write(2, b"error: the first process of this run is gone, so the others end.\n")
                self._exit()

    def _has_failed(self, store: Any) -> bool:
        """Whether any process has; or the first one is gone."""
        try:
            self._failed_elsewhere = self._failed_elsewhere or store.check([_KEY])
        except RuntimeError:
            return True
        return self._failed_elsewhere

    def _exit(self) -> None:
        sys.stdout.flush()
        os._exit(self.status)
