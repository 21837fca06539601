"""``bimba data check``: which data is meant, and what was found, for a terminal."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bimba.overrides import refusal, unknown_keys
from bimba.places import CONF, default_root
from bimba.types import BimbaError

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from rich.console import Console

    from bimba.data.check import Findings
    from bimba.data.datamodule import VideoQADataModule

SHOWN = 20  # troubles of a kind in a terminal
BARS = 12  # of the histogram
_BAR_WIDTH = 40
_MAX_LENGTH = 32_768  # Qwen2's


def find_data(
    mixture: str,
    overrides: Sequence[str] = (),
    checkpoint: str | None = None,
    video_root: str | None = None,
    image_root: str | None = None,
    annotation_root: str | None = None,
    num_frames: int | None = None,
    max_length: int | None = None,
) -> tuple[VideoQADataModule, str]:
    """The data that is meant, and whose tokens are counted.

    Args:
        mixture: a mixture's YAML file; a .json or .jsonl file; or a file of conf/data (``conf/data/needle.yaml``, from
            any folder) or its name, such as ``needle``.
        overrides: keys of the configuration, for the last.
        checkpoint: whose tokenizer and sizes count; None: the configuration's, or ``bimba-tiny``.
        video_root, image_root, annotation_root: see ``mixture.read_mixture``; of one file what its paths start from.
        num_frames, max_length: None: as the configuration, or the checkpoint says; 32,768 tokens.

    Raises:
        BimbaError: there is no such data.
    """
    from bimba.data.datamodule import VideoQADataModule
    from bimba.data.mixture import Mixture, read_mixture

    for flag, number in (("--frames", num_frames), ("--max-length", max_length)):
        if number is not None and number < 1:
            raise BimbaError(f"{flag} is {number}; expected 1 or more.")
    path = Path(mixture)
    if path.suffix not in (".json", ".jsonl") and (name := _option(path)) is not None:
        given: dict[str, Any] = {"video_root": video_root, "image_root": image_root}
        given |= {"annotation_root": annotation_root, "num_frames": num_frames, "max_length": max_length}
        named = [f"data.{key}={value}" for key, value in given.items() if value is not None]
        return _from_configuration(name, [*overrides, *named], checkpoint)
    if overrides:
        raise BimbaError(
            f"{' '.join(overrides)}: keys are for data of conf/data, and {mixture} is a file; use --video-root, ..."
        )
    checkpoint = checkpoint or "bimba-tiny"
    processor = _processor(checkpoint)
    if path.suffix in (".json", ".jsonl"):
        found = Mixture.of_file(path, video_root or path.parent, image_root)
    else:
        found = read_mixture(path, video_root, image_root, annotation_root)
    sizes = (processor.num_frames if num_frames is None else num_frames, max_length or _MAX_LENGTH)
    return VideoQADataModule(found, None, processor, *sizes, global_batch_size=1, batch_size=1), checkpoint


def _option(path: Path) -> str | None:
    """The name of a file of conf/data, where that is meant."""
    import yaml

    for file in (path, path.with_suffix(".yaml")):
        if file.is_file():
            try:
                content = yaml.safe_load(file.read_bytes())
            except yaml.YAMLError:
                return None  # reading it as a mixture says what is wrong
            return file.stem if isinstance(content, dict) and "_target_" in content else None
    if path.parts[:-1] == ("conf", "data"):  # as the repository has it, from any folder
        return path.stem
    return path.name if not path.suffix and len(path.parts) == 1 else None


def _from_configuration(name: str, overrides: Sequence[str], checkpoint: str | None) -> tuple[VideoQADataModule, str]:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from bimba.data.datamodule import VideoQADataModule
    from bimba.model.compressor import reduction_of

    cfg = _compose(name, overrides)
    if missing := sorted(OmegaConf.missing_keys(cfg.data)):
        keys = " ".join(f"{key}=..." for key in missing)
        raise BimbaError(f"data={name} has no default for {', '.join(missing)}; give {keys}")
    checkpoint = checkpoint or cfg.checkpoint or cfg.model.tokenizer
    processor = _processor(checkpoint)
    if (pooling := cfg.model.config.temporal_pooling) is not None:
        processor.temporal_pooling = pooling
    processor.reduction = reduction_of(cfg.model.compressor)
    try:
        data = instantiate(cfg.data, processor=processor, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, BimbaError):
            raise error.__cause__ from None
        raise
    if not isinstance(data, VideoQADataModule):
        raise BimbaError(f"data={name} is made while it is trained on; there are no files to check.")
    return data, checkpoint


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException, MissingConfigException

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [f"data={name}", *overrides])
    except HydraException as error:
        hints = unknown_keys(CONF, "train", [f"data={name}", *overrides]) or [refusal(error)]
        what = f"{name}: neither a file nor data of conf/data. " if isinstance(error, MissingConfigException) else ""
        raise BimbaError(what + "\n".join(hints)) from error
    cfg.paths.root = os.environ.get("BIMBA_ROOT", str(default_root()))  # as train.py has it
    return cfg


def _processor(checkpoint: str) -> Any:
    from bimba.checkpoint.source import open_checkpoint

    return open_checkpoint(checkpoint).processor


def check(
    data: VideoQADataModule, tokenizer: str, sample: int | None, workers: int, say: Callable[..., Any]
) -> Findings:
    """Opens the data, whatever is wrong with it, and looks at it."""
    from bimba.data.check import check_data

    write_first(data, say)
    return check_data(data.open_anyway(), sample, workers, tokenizer, say)


def write_first(data: VideoQADataModule, say: Callable[..., Any]) -> None:
    """Writes what is not there yet of data that are made on first use, and says so before."""
    if data.prepare is not None and not Path(data.annotations).is_file():  # which is written last
        say(f"Writing first what is not there yet of {data.annotations} and its splits, which can take minutes")
    data.prepare_data()


def histogram(lengths: np.ndarray) -> list[tuple[int, int, int]]:
    """(first, last, how many) of each bar."""
    if not len(lengths):
        return []
    low, high = int(lengths.min()), int(lengths.max())
    width = max(1, -(-(high - low + 1) // BARS))
    edges = np.arange(low, high + width + 1, width)
    counts, _ = np.histogram(lengths, edges)
    return [(int(edge), int(edge) + width - 1, int(count)) for edge, count in zip(edges, counts)]


def source_rows(found: Findings) -> list[list[str]]:
    """Source, rows, questions, media."""
    return [
        [name, *(f"{counts[key]:,}" for key in ("rows", "questions", "media"))]
        for name, counts in found.sources.items()
    ]


def verdict(found: Findings) -> str:
    """One sentence."""
    modalities = ", ".join(f"{count:,} {name}" for name, count in found.modalities.most_common())
    told = (
        f"{found.name}: {found.num_rows:,} rows ({modalities}) of {len(found.files)} files, {found.num_media:,} media"
    )
    if not found.num_troubles:
        return f"{told}. Nothing is wrong with what was looked at."
    return f"{told}. Wrong: {', '.join(f'{count:,} {kind}' for kind, count in found.num_troubles.items())}."


def print_findings(found: Findings, console: Console) -> None:
    """Everything, but of each kind of trouble the first ones."""
    from bimba.report.table import print_table

    print_table("Rows", ("Source", "Rows", "Questions", "Media"), source_rows(found), console)
    bars = histogram(found.lengths)
    if bars:
        most = max(count for *_, count in bars)
        limit = f"{found.tokenizer}; the limit is {found.max_length:,}"
        console.print(f"Tokens of {len(found.lengths):,} samples ({limit})", style="italic", markup=False)
        for first, last, count in bars:
            bar = "█" * round(_BAR_WIDTH * count / most)
            console.print(f"{f'{first:,} to {last:,}':>20}  {bar} {count:,}", markup=False, highlight=False)
    console.print(f"{found.num_read:,} of {found.num_media:,} media decoded.")
    for kind, number in found.num_troubles.items():
        console.print(f"\n{kind}: {number:,}", style="bold", markup=False)
        for trouble in [t for t in found.troubles if t.kind == kind][:SHOWN]:
            console.print(f"  {trouble.what}", markup=False, highlight=False, soft_wrap=True)
        if number > SHOWN:
            console.print(f"  and {number - SHOWN:,} more")
    console.print(f"\n{verdict(found)}", markup=False, highlight=False, soft_wrap=True)
