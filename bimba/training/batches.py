"""How many samples each process takes at a time, and how many such batches make one optimizer step."""

from __future__ import annotations

import logging

from bimba.types import BimbaError

log = logging.getLogger(__name__)


def samples_per_pass(global_batch_size: int, batch_size: int, world_size: int) -> int:
    """``batch_size``, or what there is for each rank if a step has fewer samples than ranks could take at once.

    Raises:
        BimbaError: a step's samples cannot be dealt out evenly.
    """
    if global_batch_size < 1 or global_batch_size % world_size:
        raise BimbaError(
            f"data.global_batch_size is {global_batch_size}; expected a multiple of the {world_size} processes. Change "
            "it, or trainer.devices."
        )
    share = global_batch_size // world_size
    if batch_size > share:
        log.info("Each of %d processes takes %d samples at a time, all it has of a step.", world_size, share)
    return min(batch_size, share)


def accumulation_steps(global_batch_size: int, batch_size: int, world_size: int) -> int:
    """How many batches of each rank make one optimizer step.

    Raises:
        BimbaError: the global batch is not a whole number of batches.
    """
    per_pass = batch_size * world_size
    if global_batch_size < 1 or global_batch_size % per_pass:
        raise BimbaError(
            f"data.global_batch_size is {global_batch_size}; expected a multiple of {per_pass} (data.batch_size "
            f"{batch_size} on each of {world_size} processes). Change one of the two."
        )
    return global_batch_size // per_pass
