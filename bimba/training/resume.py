"""What a Lightning checkpoint of a training run holds besides Lightning's own, and what is checked when one is read."""

from __future__ import annotations

import logging
from collections.abc import Set
from typing import Any

from bimba.types import BimbaError

log = logging.getLogger(__name__)


def check_names(saved: Set[str], trained: Set[str], everything: Set[str]) -> None:
    """Compares the weights of a checkpoint with those of the model.

    Args:
        saved: names in the checkpoint: what was trained, or with ``save_frozen`` everything.
        trained: names of what is trained now.
        everything: all names of the model now.

    Raises:
        BimbaError: the checkpoint is of another setup.
    """
    missing = sorted(trained - saved)
    unexpected = sorted(saved - (everything if saved >= everything else trained))
    if missing or unexpected:
        raise BimbaError(
            f"The file given as resume= belongs to another training setup: it lacks {len(missing)} trained weights "
            f"({', '.join(missing[:3]) or 'none'}) and has {len(unexpected)} that are not trained here "
            f"({', '.join(unexpected[:3]) or 'none'}). Resume with the model, model/compressor, model.tuning and "
            "model.lora of the run that wrote it (its config.yaml)."
        )


def warn_of_another_base(saved: str | None, base: str | None) -> None:
    """The frozen weights are not in the checkpoint; those of another base give another model."""
    if saved != base:
        log.warning(
            "The run to resume was trained on the base %s; the frozen weights are now those of %s.", saved, base
        )


def count_batches_anew(loops: dict[str, Any], saved_per_step: int, per_step: int) -> None:
    """Puts Lightning's counts of batches right for another number of processes, which deals a step to more or fewer.

    Args:
        loops: ``checkpoint["loops"]``, changed in place.
        saved_per_step, per_step: batches of one process that make an optimizer step, then and now.
    """
    progress = loops["fit_loop"]["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        ready = counts["ready"] * per_step // saved_per_step
        for key, count in counts.items():  # at the end of a step, the last batch is ready, but not yet completed
            counts[key] = ready - (counts["ready"] - count) if key != "ready" else count
        counts["ready"] = ready
