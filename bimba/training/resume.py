"""Which checkpoint a run goes on from, what it holds besides Lightning's own, and what is checked when one is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from bimba.training.checkpointing import check_whole, newest_whole, read_manifest
from bimba.types import BimbaError

log = logging.getLogger(__name__)

# Keys that do not change what a run learns, or only as much as another machine would. All others must be as they were.
_FREE = {
    "callbacks", "logger", "paths", "resume", "resume_with_changes", "save_frozen", "show_traceback",
    "evaluate", "objective",
    "data.num_workers", "data.prepare", "model.compile",
    "trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.default_root_dir",
    "trainer.log_every_n_steps", "trainer.val_check_interval", "trainer.check_val_every_n_epoch",
    "trainer.limit_val_batches", "trainer.num_sanity_val_steps", "trainer.detect_anomaly", "trainer.profiler",
    "trainer.enable_model_summary", "trainer.enable_progress_bar",
}  # fmt: skip
# How long an epoch is in steps; a run that stopped in the middle of one cannot go on in another.
_FIXED = {"data.global_batch_size", "data.max_batch_tokens"}


def checkpoint_to_resume(resume: str | None, run_dir: Path) -> Path | None:
    """What ``resume=`` names, whole: the checkpoint file, or None to start from the beginning.

    Args:
        resume: None; a file; a folder with files, or the folder of a run, whose newest whole file is meant; "auto": as
            the folder of this run, which may have none yet.
        run_dir: this run's folder.

    Raises:
        BimbaError: there is no such file, or it is not what was written.
    """
    if resume is None:
        return None
    if resume == "auto":
        found = newest_whole(run_dir / "resume")
        if found is None:
            log.info("resume=auto: %s has no whole checkpoint, so the run starts from the beginning.", run_dir)
        else:
            log.info("resume=auto: going on from %s", found)
        return found
    path = Path(resume)
    if path.is_dir():
        folder = path / "resume" if (path / "resume").is_dir() else path
        found = newest_whole(folder)
        if found is None:
            raise BimbaError(f"resume={resume}: {folder} has no whole checkpoint file; expected step_<N>.ckpt in it.")
        return found
    if not path.is_file():
        raise BimbaError(
            f"resume={resume} is no file and no folder; expected auto, an earlier run's folder, or one of its "
            "resume/step_<N>.ckpt."
        )
    check_whole(path)
    return path


def check_same_config(path: Path, config: Mapping[str, Any], changes_allowed: bool) -> None:
    """Compares the configuration of the run that wrote a checkpoint with this one's, where it changes what is learned.

    Args:
        config: this run's, as in the manifest.
        changes_allowed: ``resume_with_changes``: differences are logged, and no error.

    Raises:
        BimbaError: they differ; with each key, then and now.
    """
    saved, now = _flat(read_manifest(path).config), _flat(config)
    keys = sorted(key for key in {*saved, *now} if saved.get(key) != now.get(key) and not _is_free(key))
    if not keys:
        return
    shown = "".join(f"\n  {key}: {saved.get(key, '(none)')} -> {now.get(key, '(none)')}" for key in keys)
    fixed = ", ".join(key for key in keys if key in _FIXED)
    if fixed or not changes_allowed:
        instead = (
            f"; {fixed} cannot change" if fixed else ", or resume_with_changes=true to go on with them as they are"
        )
        raise BimbaError(
            f"{path} was written by a run with another configuration (then -> now):{shown}\nGive these keys as they "
            f"were{instead}."
        )
    log.warning("Resumed with another configuration than before (then -> now):%s", shown)


def _flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping) and value:
            values |= _flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def _is_free(key: str) -> bool:
    parts = key.split(".")
    return any(".".join(parts[:n]) in _FREE for n in range(1, len(parts) + 1))


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
