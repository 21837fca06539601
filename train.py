"""Trains a BIMBA: ``python train.py`` with keys of ``conf/`` as arguments (``--help`` lists them).

    python train.py                                     the embedded default: bimba_tiny on needle videos, on the CPU
    python train.py trainer.max_steps=5                 a taste of it
    python train.py experiment=bimba_7b                 a recipe of conf/experiment/
    python train.py resume=outputs/train/...            goes on where that run stopped, with the same other keys
    python train.py hydra.run.dir=outputs/mine resume=auto   goes on where a run in this folder stopped, or begins one

A run leaves in its folder (hydra.run.dir, by default outputs/train/<date>/<time>) ``config.yaml``, ``metrics.csv``,
``checkpoint/`` and ``run.json``. Nothing heavy is imported before the job runs, so ``--help`` and ``--cfg job`` answer
at once.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from omegaconf import DictConfig, OmegaConf

from bimba.overrides import check_command_line
from bimba.places import command_of, default_root
from bimba.sweep.job import is_job_of_sweep, run_as_process
from bimba.types import BimbaError, first_line

if TYPE_CHECKING:
    import lightning as L

os.environ.setdefault("BIMBA_ROOT", str(default_root()))  # conf/paths reads it
SCRIPT = Path(__file__).resolve()
KEYS = {"model", "data", "trainer", "optimizer", "logger", "callbacks", "paths"} | {
    "seed",
    "checkpoint",
    "base",
    "resume",
    "resume_with_changes",
    "save_frozen",
    "show_traceback",
    "evaluate",
    "objective",
}


def fit(cfg: DictConfig, more: Sequence[L.Callback] = ()) -> L.Trainer:
    """Builds everything that the configuration names, trains, and returns the trainer.

    Args:
        more: callbacks besides those of the configuration.
    """
    import lightning as L
    from hydra.utils import instantiate

    from bimba.training import (
        BimbaModule,
        ModelSettings,
        accumulation_steps,
        ask_as_in,
        build_model,
        log_parts,
        outline_model,
        samples_per_pass,
        set_trainable,
    )
    from bimba.training.parallel import ShardedStrategy
    from bimba.training.resume import check_same_config, checkpoint_to_resume
    from bimba.training.stream import shard, to_meta
    from bimba.training.together import ending_together

    check(cfg)
    quiet()
    resumed = checkpoint_to_resume(cfg.resume, Path(cfg.paths.run_dir))
    cfg.resume = None if resumed is None else str(resumed)  # loggers go by it
    if resumed is not None:
        check_same_config(resumed, recorded(cfg), cfg.resume_with_changes)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    trainer = build_trainer(cfg, more)  # first: it is quick to say that there is no such accelerator
    # Next what needs no model: that of an experiment is 16 GB to read.
    settings = ModelSettings.from_node(instantiate(cfg.model, _convert_="all"))
    optimizer = instantiate(cfg.optimizer, _convert_="all")
    batch_size = samples_per_pass(cfg.data.global_batch_size, cfg.data.batch_size, trainer.world_size)
    trainer.accumulate_grad_batches = accumulation_steps(cfg.data.global_batch_size, batch_size, trainer.world_size)
    deal_out = partial(shard, precision=str(trainer.precision))
    if isinstance(trainer.strategy, ShardedStrategy) and cfg.checkpoint is not None:
        model, processor, tensors = outline_model(settings, cfg.checkpoint, cfg.base)
        set_trainable(model, settings.tuning, settings.lora, partial(to_meta, tensors=tensors), settings.frozen)
        deal_out = partial(deal_out, tensors=tensors)
    else:
        model, processor = build_model(settings, cfg.checkpoint, cfg.base)
        set_trainable(model, settings.tuning, settings.lora, frozen=settings.frozen)
    data = instantiate(cfg.data, processor=processor, batch_size=batch_size, _convert_="all")
    ask_as_in(data.recipe, model, processor)
    module = BimbaModule(
        model,
        processor,
        optimizer,
        ["vision_lora"] if settings.cuts_vision_tower_off else [],
        loss_mean=data.recipe.loss_mean,
        base=cfg.checkpoint,
        save_frozen=cfg.save_frozen,
        shard=deal_out,
    )
    if trainer.is_global_zero:
        log_parts(model)
        OmegaConf.save(cfg, Path(cfg.paths.run_dir) / "config.yaml", resolve=True)
    with ending_together(trainer):
        trainer.fit(module, datamodule=data, ckpt_path=cfg.resume, weights_only=True)
    return trainer


def quiet() -> None:
    """Keeps notes that a user can do nothing about off the screen."""
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # its table of fresh weights; bimba.checkpoint checks them and says so
    for message in (
        ".*treespec, LeafSpec.*",  # Lightning calls something that torch renames
        ".*overridden `transfer_batch_to_device` in `LightningModule`.*",  # meant: BimbaModule says why
        ".*does not have many workers.*",  # data.num_workers is explained in conf/data
        ".*Total length of .* across ranks is zero.*",  # data.val_samples=0
        ".*None of the inputs have requires_grad=True.*",  # of reentrant checkpointing; build_model says what follows
        ".*`training_step` returned `None`.*",  # every sample of the batch was bad, which BadVideoGuard reports
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # which nothing here writes into
        ".*your dataloader is not resumable.*",  # it is: the data module's sampler skips what was seen
    ):
        warnings.filterwarnings("ignore", message=message)


def build_trainer(cfg: DictConfig, more: Sequence[L.Callback] = ()) -> L.Trainer:
    """The Lightning trainer with its callbacks and loggers.

    Raises:
        BimbaError: the machine has not got what the keys of ``trainer`` ask for.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from bimba.training.checkpointing import WholeFiles

    callbacks = [instantiate(node) for node in cfg.callbacks.values() if node is not None]
    callbacks += more
    loggers = [instantiate(node) for node in cfg.logger.values()]
    saves_state = any(isinstance(callback, Checkpoint) for callback in callbacks)
    try:
        return instantiate(
            cfg.trainer,
            plugins=[WholeFiles(recorded(cfg))],
            precision=precision_of(cfg),
            callbacks=callbacks,
            logger=loggers,
            enable_checkpointing=saves_state,
            _convert_="all",
        )
    except InstantiationException as error:
        if not isinstance(error.__cause__, MisconfigurationException | ImportError):
            raise
        if _has(cfg.trainer.accelerator, cfg.trainer.devices):
            raise BimbaError(f"Lightning refuses the keys of trainer: {first_line(error.__cause__)}") from error
        raise BimbaError(
            f"trainer.accelerator={cfg.trainer.accelerator} with trainer.devices={cfg.trainer.devices} cannot be had "
            f"here ({first_line(error.__cause__).rstrip('.')}). Expected what this machine has, which "
            "`bimba doctor` lists: trainer=cpu runs anywhere."
        ) from error


def _has(accelerator: Any, devices: Any) -> bool:
    """Whether this machine has so many of these devices."""
    import lightning as L
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    try:
        L.Trainer(accelerator=accelerator, devices=devices, logger=False, enable_checkpointing=False)
    except (MisconfigurationException, ImportError, TypeError, ValueError):  # the last two, of values of another kind
        return False
    return True


def recorded(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as checkpoints have it, every reference resolved."""
    values: Any = OmegaConf.to_container(cfg, resolve=True)
    values["trainer"]["precision"] = precision_of(cfg)
    return values


def precision_of(cfg: DictConfig) -> str:
    """``trainer.precision``, where "auto" goes by the type of the frozen weights."""
    if cfg.trainer.precision != "auto":
        return str(cfg.trainer.precision)
    return "32-true" if cfg.model.dtype == "float32" else "bf16-mixed"


def check(cfg: DictConfig) -> None:
    """Raises ``BimbaError`` for what would fail late or silently, after a base of 16 GB was loaded."""
    unknown = sorted(set(map(str, cfg)) - KEYS)
    if unknown:
        raise BimbaError(f"Nobody reads {', '.join(unknown)}; expected only {', '.join(sorted(KEYS))}.")
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise BimbaError(f"There is no default for {', '.join(missing)}; give {'=... '.join(missing)}=...")
    if cfg.trainer.max_steps == -1 and cfg.trainer.max_epochs == -1:
        raise BimbaError("trainer.max_steps and trainer.max_epochs are both -1, so the run would never end; set one.")
    sharded = not isinstance(cfg.trainer.strategy, str)  # only trainer=fsdp has keys of its own there
    if sharded and cfg.model.gradient_checkpointing == "reentrant":
        raise BimbaError(
            "model.gradient_checkpointing=reentrant runs a layer's backward pass apart from the model's, which "
            "trainer=fsdp cannot follow; use model.gradient_checkpointing=true, or trainer=ddp."
        )
    precision = precision_of(cfg)
    if precision != "bf16-mixed" and (cfg.model.dtype != "float32" or precision not in ("32", "32-true")):
        reason = "what is trained is kept in float32"
        if precision.startswith("16"):
            reason = "float16 needs its gradients scaled, which the norms and the skipping of steps do not know of"
        raise BimbaError(
            f"trainer.precision={precision} does not go with model.dtype={cfg.model.dtype}: {reason}. Expected "
            "trainer.precision=bf16-mixed, or 32-true with model.dtype=float32."
        )


def what_next(run_dir: Path) -> str:
    """The last words of a run."""
    checkpoint = run_dir / "checkpoint"
    if not checkpoint.is_dir():
        return f"The run is in {run_dir}; it saved no checkpoint (callbacks.save is off)."
    here = os.path.relpath(checkpoint)
    evaluate = " ".join(command_of(Path(sys.argv[0]).with_stem("evaluate")))
    shown = here if not here.startswith("..") else str(checkpoint)
    return (
        f"\nThe model is in {shown}. Evaluate it, or ask it:\n"
        f"  {evaluate} {shlex.quote(f'checkpoint={shown}')}\n"
        f'  bimba ask VIDEO "QUESTION" --checkpoint {shlex.quote(shown)}'
    )


def run(cfg: DictConfig) -> L.Trainer:
    """Trains, evaluates what came out of it (the key ``evaluate``), and keeps a record of both: ``run.json``."""
    from hydra.core.hydra_config import HydraConfig

    from bimba.training.evaluations import check_evaluations, evaluate_trained, find_objective
    from bimba.training.run_record import RunRecord

    evaluate = check_evaluations(cfg.evaluate, cfg.callbacks.get("save") is not None)
    with RunRecord(cfg.paths.run_dir, HydraConfig.get().overrides.task, evaluate) as record:
        trainer = fit(cfg, [record])
        record.trained(trainer)
        if trainer.is_global_zero:
            evaluate_trained(record, SCRIPT.with_stem("evaluate"))
            record.write(objective=find_objective(cfg.objective, record))
    return trainer


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float | None:
    if is_job_of_sweep():
        return run_as_process(SCRIPT)
    try:
        trainer = run(cfg)
    except KeyboardInterrupt:  # before the run listens for it, or a second one
        print(f"interrupted; what was written is in {cfg.paths.run_dir}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        from bimba.training.errors import is_for_the_user, message_of, status_of_failed, status_of_stopped

        if (status := status_of_stopped(error)) is not None:
            raise SystemExit(status) from None
        if (status := status_of_failed(error, cfg.show_traceback)) is not None:
            raise SystemExit(status) from None
        if cfg.show_traceback or not is_for_the_user(error):
            raise
        raise SystemExit(message_of(error)) from None
    if trainer.is_global_zero:
        print(what_next(Path(cfg.paths.run_dir)))
    return None


if __name__ == "__main__":
    check_command_line(SCRIPT.parent / "conf", "train", sys.argv[1:])
    main()
