"""Peak memory of loading and converting a checkpoint in the original's layout, against what it takes on disk.

    python benchmarks/load_memory.py               a checkpoint of 1 GB, written to a temporary folder
    python benchmarks/load_memory.py --layers 28   twice as large

Each way of loading runs in a process of its own; what importing takes is subtracted. The peer is the usual
``load_file`` of every shard and ``load_state_dict``. "sharded" is how ``trainer=fsdp`` loads, on two processes of which
the larger counts; for it the process's own memory and pages of files (``RssAnon``, ``RssFile``) are told apart, too.
No figure is printed if the loaded weights differ.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import torch
from safetensors.torch import load_file
from torch import Tensor

from bimba.checkpoint import convert, load_pretrained
from bimba.checkpoint.convert import write_weights
from bimba.checkpoint.keymap import to_original, to_ours
from bimba.checkpoint.original import read_config
from bimba.checkpoint.source import expected_shapes
from bimba.model.bimba import BimbaForConditionalGeneration
from bimba.model.mamba import cast

TEMPLATE = Path(__file__).resolve().parents[1] / "tests/golden/model/ckpt_56_bimba"
NUM_SHARDS = 4


@dataclass(frozen=True)
class Random:
    """A tensor that is made when it is read."""

    shape: tuple[int, ...]
    file: str
    seed: int

    def __getitem__(self, all_of_it: EllipsisType) -> Tensor:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(self.seed)).mul_(0.02).bfloat16()


def write_checkpoint(folder: Path, layers: int) -> None:
    """A checkpoint with the tokenizer of the golden one and a language model of about 33 million parameters a layer."""
    shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 1536, "intermediate_size": 6144, "num_hidden_layers": layers, "num_attention_heads": 12}
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 16384, "torch_dtype": "bfloat16"}))
    shapes = expected_shapes(read_config(folder))
    tensors = {
        str(to_original(name)): Random(shape, f"{i * NUM_SHARDS // len(shapes)}.safetensors", i)
        for i, (name, shape) in enumerate(shapes.items())
    }
    write_weights(tensors, folder)


def memory(line: str) -> int:
    """Bytes of this process now: ``VmRSS``, or of it ``RssAnon`` and ``RssFile``; ``VmHWM``: at its highest since
    :func:`forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) * 1024


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


class Peaks(threading.Thread):
    """Looks a thousand times a second at what Linux keeps no peak of, its parts of a process's memory.

    Attributes:
        bytes: of each line of /proc/self/status, at its highest.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = dict.fromkeys(("RssAnon", "RssFile"), 0)
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.001):
            self.look()

    def look(self) -> None:
        for line, highest in self.bytes.items():
            self.bytes[line] = max(highest, memory(line))


def load_naively(folder: Path) -> BimbaForConditionalGeneration:
    weights = {to_ours(name): t for shard in folder.glob("*.safetensors") for name, t in load_file(shard).items()}
    model = BimbaForConditionalGeneration(read_config(folder))
    cast(model, torch.bfloat16)  # as load_pretrained does: some parameters stay in float32
    model.load_state_dict(weights)
    return model


def digest(model: torch.nn.Module) -> str:
    """A hash of every weight; reads them all, so that lazily mapped ones count too."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def measure(what: str, folder: Path) -> None:
    """In a child process: does it, and prints the memory it took above what was there before."""
    forget_peak()
    before, result = memory("VmRSS"), ""
    if what == "convert":
        convert(folder, folder.parent / "converted")
    else:
        result = digest(load_pretrained(folder)[0] if what == "load_pretrained" else load_naively(folder))
    print(json.dumps({"bytes": memory("VmHWM") - before, "digest": result}))


def measure_sharded(folder: Path) -> None:
    """In a child process, which Lightning starts a second time: loads as ``trainer=fsdp`` does, and writes a report."""
    import lightning as L

    from bimba.checkpoint import outline_pretrained
    from bimba.training.parallel import ShardedStrategy, whole
    from bimba.training.stream import shard, to_meta

    class Model(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, _, self.tensors = outline_pretrained(folder)
            to_meta(self.model, self.tensors)

        def configure_model(self) -> None:
            strategy = self.trainer.strategy
            assert isinstance(strategy, ShardedStrategy)  # noqa: S101
            shard(self, strategy, "32-true", self.tensors)

        def training_step(self, batch: object) -> None:
            """Nothing is trained."""

        def train_dataloader(self) -> list[int]:
            return [0]

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def on_fit_start(self) -> None:
            torch.distributed.barrier()
            peaks.done.set()
            peaks.look()
            sizes = {"bytes": memory("VmHWM") - before["VmRSS"], "kept": memory("VmRSS") - before["VmRSS"]}
            sizes |= {line: highest - before[line] for line, highest in peaks.bytes.items()}
            state = {name: whole(tensor) for name, tensor in sorted(self.model.state_dict().items())}
            total = hashlib.sha256()
            for name, tensor in state.items():
                total.update(name.encode() + tensor.contiguous().flatten().view(torch.uint8).numpy().data)
            report = {**sizes, "digest": total.hexdigest()}
            (folder.parent / f"rank_{self.global_rank}.json").write_text(json.dumps(report))

    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=ShardedStrategy(), limit_train_batches=0, max_steps=1,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    forget_peak()
    before = {line: memory(line) for line in ("VmRSS", "RssAnon", "RssFile")}
    peaks = Peaks()
    peaks.start()
    trainer.fit(Model())


def run(what: str, folder: Path) -> dict[str, str | int]:
    child = subprocess.run([sys.executable, __file__, "--measure", what, str(folder)], capture_output=True, text=True)
    if child.returncode:
        sys.exit(child.stderr)
    if what == "sharded":
        ranks = [json.loads((folder.parent / f"rank_{rank}.json").read_text()) for rank in range(2)]
        return max(ranks, key=lambda report: report["bytes"])
    result: dict[str, str | int] = json.loads(child.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=14, help="layers of the language model (default: %(default)s)")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, path = arguments.measure
        measure_sharded(Path(path)) if what == "sharded" else measure(what, Path(path))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoint"
        write_checkpoint(folder, arguments.layers)
        sizes = [path.stat().st_size for path in folder.glob("*.safetensors")]
        results = {what: run(what, folder) for what in ("load_pretrained", "sharded", "naive", "convert")}
    if len({results[what]["digest"] for what in ("load_pretrained", "sharded", "naive")}) > 1:
        sys.exit("The ways of loading give different weights: no figures.")
    on_disk, largest = sum(sizes), max(sizes)
    print(f"On disk: {on_disk / 1e9:.2f} GB in {len(sizes)} shards, the largest {largest / 1e9:.2f} GB.")
    for what, size, of in (
        ("load_pretrained", on_disk, "the checkpoint"),
        ("sharded", on_disk, "the checkpoint, on each of two processes"),
        ("naive", on_disk, "the checkpoint"),
        ("convert", largest, "the largest shard"),
    ):
        peak = int(results[what]["bytes"])
        print(f"{what:<16} peak {peak / 1e9:5.2f} GB = {peak / size:.2f} x {of}")
    own, pages, kept = (int(results["sharded"][line]) / 1e9 for line in ("RssAnon", "RssFile", "kept"))
    print(f"sharded          own memory {own:.2f} GB, pages of files {pages:.2f} GB (peaks); kept {kept:.2f} GB")


if __name__ == "__main__":
    main()
