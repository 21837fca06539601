"""A step of our loop against one of a bare PyTorch loop: same model, batches, optimizer and schedule, in one process.

    python benchmarks/training_step.py                 60 steps of each, as the demo has them: 8 clips of 32 frames
    python benchmarks/training_step.py --set data.batch_size=2 data.global_batch_size=2

Ours is what ``python train.py optimizer=adamw`` runs: ``BimbaModule`` in Lightning's trainer, with the callbacks and
the logger of conf/train.yaml, and what ``--set`` changes. (Muon rounds to bfloat16: losses could not be compared.) The
bare loop has the same forward pass and loss, on a copy of the model, and else what one would write by hand. The two
take turns, step by step: the loader that feeds the trainer runs the bare loop's step on a batch before it hands that
batch over. So the time of our step is all that happens between two batches: waiting, hooks, logging. Clips are random
pixels in memory, so nobody waits for files.

Times are of the process (all its threads) and of the clock; each of our steps is compared with the bare one before it,
and the ratio is the median of these ratios. Reports and checkpoints that come every so many steps are in the mean. No
figure is printed if the losses differ.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from measure import header
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from bimba.data.tokenize import IGNORE_INDEX
from bimba.training import BimbaModule, ModelSettings, build_model, set_trainable
from bimba.training.optim import build_optimizer
from bimba.types import Batch

ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 3  # steps that do not count: the first ones compile, allocate and open files
TOLERANCE = 1e-4  # relative, of the losses


class BareLoop:
    """What one would write without Lightning: forward, backward, clip, step."""

    def __init__(self, module: BimbaModule, total_steps: int, clip: float):
        self.module, self.clip = module, clip
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer, self.schedule = build_optimizer(module.model, module.optimizer_settings, total_steps)

    def step(self, batch: Batch) -> Tensor:
        self.optimizer.zero_grad()
        loss: Tensor = self.module(batch).losses.mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()


class Turns:
    """The trainer's loader: before it hands a batch over, the bare loop has had its step on it."""

    def __init__(self, batches: list[Batch], bare: BareLoop):
        self.batches, self.bare = batches, bare
        self.bare_losses: list[float] = []
        self.bare_s: list[tuple[float, float]] = []
        self.our_s: list[tuple[float, float]] = []

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            began = _clocks()
            loss = self.bare.step(batch)
            self.bare_s.append(_since(began))
            self.bare_losses.append(loss.item())
            began = _clocks()
            yield batch
            self.our_s.append(_since(began))


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def _since(began: tuple[float, float]) -> tuple[float, float]:
    now = _clocks()
    return now[0] - began[0], now[1] - began[1]


class Losses(L.Callback):
    """Notes what our loop logs as the loss of each step."""

    def __init__(self) -> None:
        self.noted: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.noted.append(float(trainer.callback_metrics["train/loss"]))


def train_script() -> Any:
    """train.py as a module; it lies beside this folder, not in the package."""
    sys.path.insert(0, str(ROOT))
    import train

    return train


def compose_run(folder: Path, steps: int, overrides: list[str]) -> DictConfig:
    """conf/train.yaml as ``python train.py`` composes it, for a run in ``folder``."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        fixed = [f"hydra.run.dir={folder}", f"trainer.max_steps={steps}", "data.val_samples=0", "optimizer=adamw"]
        cfg = compose("train", [*fixed, *overrides], return_hydra_config=True)
    cfg.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(cfg)
    return OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])


def random_batches(processor: Any, num_frames: int, size: int, count: int) -> list[Batch]:
    """Clips of noise with a question; of each sequence the last eight tokens are learned."""
    generator = torch.Generator().manual_seed(0)
    side = processor.image_processor.size["height"]
    placeholders = torch.full((processor.num_video_tokens(num_frames),), processor.video_token_id)
    batches: list[Batch] = []
    for number in range(count):
        words = torch.randint(5, 200, (size, 48), generator=generator)
        input_ids = torch.cat([placeholders.expand(size, -1), words], dim=1)
        labels = input_ids.clone()
        labels[:, :-8] = IGNORE_INDEX
        batches.append(
            {
                "input_ids": input_ids,
                "attention_mask": torch.ones_like(input_ids),
                "labels": labels,
                "pixel_values_videos": [
                    torch.rand(num_frames, 3, side, side, generator=generator) * 2 - 1 for _ in range(size)
                ],
                "modalities": ["video"] * size,
                "sources": ["noise"] * size,
                "ids": [f"{number}.{row}" for row in range(size)],
            }
        )
    return batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="that count, of each loop (default: %(default)s)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of conf/train.yaml")
    arguments = parser.parse_args()
    steps = arguments.steps + WARM_UP
    train = train_script()
    train.quiet()
    with tempfile.TemporaryDirectory() as folder:
        cfg = compose_run(Path(folder), steps, arguments.set)
        L.seed_everything(cfg.seed, verbose=False)
        settings = ModelSettings.from_node(instantiate(cfg.model, _convert_="all"))
        model, processor = build_model(settings, cfg.checkpoint)
        set_trainable(model, settings.tuning, settings.lora)
        optimizer = instantiate(cfg.optimizer, _convert_="all")
        bare = BareLoop(BimbaModule(copy.deepcopy(model), processor, optimizer), steps, cfg.trainer.gradient_clip_val)
        turns = Turns(random_batches(processor, cfg.model.config.num_frames, cfg.data.batch_size, steps), bare)
        trainer, losses = train.build_trainer(cfg), Losses()
        trainer.callbacks.append(losses)  # type: ignore[attr-defined]
        trainer.fit(BimbaModule(model, processor, optimizer, base=cfg.checkpoint), train_dataloaders=turns)
    for number, (ours, theirs) in enumerate(zip(losses.noted, turns.bare_losses, strict=True)):
        if not math.isclose(ours, theirs, rel_tol=TOLERANCE):
            sys.exit(f"Step {number}: our loss is {ours}, the bare loop's {theirs}: no figures.")
    print(f"{header()}; {len(trainer.callbacks)} callbacks, losses equal to {TOLERANCE:g} over {steps} steps")  # type: ignore[attr-defined]
    for which, name in ((0, "CPU time"), (1, "clock")):
        our_s, bare_s = ([step[which] for step in of[WARM_UP:]] for of in (turns.our_s, turns.bare_s))
        pairs = [ours / theirs for ours, theirs in zip(our_s, bare_s)]
        print(
            f"{name:<8}  ours {statistics.median(our_s) * 1e3:6.1f} ms, bare {statistics.median(bare_s) * 1e3:6.1f} ms "
            f"a step (medians)  ratio {statistics.median(pairs):.3f}  with all reports and checkpoints "
            f"{sum(our_s) / sum(bare_s):.3f}"
        )


if __name__ == "__main__":
    main()
