"""The model card: ``README.md`` beside the weights, which the Hugging Face hub reads for search and for its page."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import ModelCardData

from bimba.model.config import BimbaConfig

PAPER = "2503.09590"

_BODY = """\
# BIMBA checkpoint

Answers questions about long videos: SigLIP, a projector, a selective-scan token compressor
([arXiv {paper}](https://arxiv.org/abs/{paper})) and Qwen2.

| | |
|---|---|
| frames per video | {num_frames}, each {image_size}x{image_size} pixels |
| compressor | {compressor} |
| one query stands for | {frames} frame(s) of {rows} x {rows} patches |
| language model | {num_layers} layers of {hidden_size} |

## Use

```python
from bimba import VideoQA

qa = VideoQA.from_pretrained("CHECKPOINT")  # this folder, or this repository's name
video = qa.encode("video.mp4")
print(video.ask("What happens in the video?"))
```

With transformers alone, once `bimba` is imported:

```python
import bimba
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained("CHECKPOINT")
processor = AutoProcessor.from_pretrained("CHECKPOINT")
```
"""


def write_card(config: BimbaConfig, folder: Path) -> None:
    """Writes ``folder/README.md``; nothing in it is guessed: the base is named only if it is one of the hub's."""
    data = ModelCardData(
        library_name="bimba",
        pipeline_tag="video-text-to-text",
        license="apache-2.0",
        base_model=_base(config),
        tags=["transformers", "bimba", f"arxiv:{PAPER}"],
    )
    body = _BODY.format(
        paper=PAPER,
        num_frames=config.num_frames,
        image_size=config.vision_config.image_size,
        compressor=(config.compressor or {"name": "pool"})["name"],
        frames=config.reduction[0],
        rows=config.reduction[1],
        num_layers=config.text_config.num_hidden_layers,
        hidden_size=config.text_config.hidden_size,
    )
    (folder / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{body}", encoding="utf-8")


def _base(config: BimbaConfig) -> str | None:
    """The repository on the hub that a checkpoint in the original's layout was trained from, if its config says so."""
    name = (config.original_config or {}).get("_name_or_path")
    return name if isinstance(name, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) else None
