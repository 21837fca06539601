"""LLaVA-Video-178K in miniature, as it lies on a disk, with pictures and texts of a LLaVA-NeXT mixture beside it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from tests.data.files import numbered_frames, write_video

YOUTUBE, ACADEMIC = "1_2_m_youtube_v0_1", "2_3_m_academic_v0_1"
MIXTURE = [
    {"json_path": f"{{{YOUTUBE},{ACADEMIC}}}/*.json", "sampling_strategy": "all"},
    {"json_path": "pictures.jsonl", "sampling_strategy": "first:100%", "image_folder": "pictures"},
    {"json_path": "texts.json", "sampling_strategy": "end:2"},
]
NUM_ROWS = {YOUTUBE: 4, ACADEMIC: 2, "pictures": 4, "texts": 2}  # of each source, as the mixture takes them


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def make(root: Path) -> Path:
    """Writes it all below ``root``; returns the mixture's file."""
    for source, videos in ((YOUTUBE, "liwei_youtube_videos/videos"), (ACADEMIC, "academic_source/Charades")):
        folder = root / source
        (folder / videos).mkdir(parents=True)
        write_video(folder / videos / "0.mp4", numbered_frames(12))
    frames = root / ACADEMIC / "academic_source" / "frames"
    frames.mkdir()
    for number, frame in enumerate(numbered_frames(12)):
        Image.fromarray(frame).save(frames / f"{number + 1}.png")

    youtube = "liwei_youtube_videos/videos/0.mp4"
    write(root / YOUTUBE / f"{YOUTUBE}_cap_processed.json", [video(YOUTUBE, 0, youtube), video(YOUTUBE, 1, youtube)])
    write(root / YOUTUBE / f"{YOUTUBE}_oe_qa_processed.json", [video(YOUTUBE, 0, youtube), video(YOUTUBE, 1, youtube)])
    academic = [video(ACADEMIC, 0, "academic_source/Charades/0.mp4"), video(ACADEMIC, 1, "academic_source/frames")]
    write(root / ACADEMIC / f"{ACADEMIC}_mc_qa_processed.json", academic)

    (root / "pictures").mkdir()
    for name, size in (("a.png", (40, 30)), ("b.png", (30, 64))):
        noise = np.random.default_rng(len(name)).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(noise).save(root / "pictures" / name)
    one = talk("<image>\nWhat is it?", "Noise.", "Sure?", "Yes.")
    two = talk("Compare <image> with <image>.", "Both are noise.")
    pictures: list[dict[str, Any]] = [
        {"id": 0, "image": "a.png", "conversations": one},
        {"id": 1, "image": ["a.png", "b.png"], "conversations": two},
        {"id": 2, "image": "b.png", "conversations": one},
        {"id": 3, "image": ["b.png"], "conversations": one},
    ]
    (root / "pictures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pictures))
    write(root / "texts.json", [{"id": i, "conversations": talk(f"Say {i}.", f"{i}")} for i in range(5)])
    (root / "mixture.yaml").write_text(yaml.safe_dump({"datasets": MIXTURE}))
    return root / "mixture.yaml"


def video(source: str, number: int, path: str) -> dict[str, Any]:
    turns = talk("<image>\nWhat is seen?", "Stripes.", "Of what colour?", "Black and white.")
    return {"id": f"{source}-{number}", "data_source": source, "video": path, "conversations": turns}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows))
