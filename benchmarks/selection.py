"""How often a trained compressor's scan selects the needle: is it in the top 5 % of the selection map?

    python benchmarks/selection.py --checkpoint outputs/demo/train/checkpoint --data data/needle/test --clips 200

Of each clip every space-time token that shows a needle counts (``needles`` in the annotations, the frames that were
sampled): is it among the top 5 % of the clip's space-time tokens? The mean over the tokens of a clip, then over clips,
with a bootstrapped 95 % interval over clips. Chance is 5 %. "frames" asks the same of the frames that show a needle, by
the sum of their tokens; of 32 frames the top 5 % are two, so chance is 6.25 %.

Untrained is the same checkpoint with a compressor that has just been made: same vision, same projector. Its out_proj is
zero, so it adds nothing to any query; both are therefore measured before out_proj (--measure gated), or behind it, as
``bimba map`` does, with an untrained out_proj that is drawn as PyTorch does (--measure change). A map is the mean
over the queries, as ``bimba map`` draws it, or what each token added to the query it added most to (max). "length of
the token" is the map that needs no scan: how long each token's vector is.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from bimba.checkpoint import load_pretrained
from bimba.data.isolated import read_frames
from bimba.data.transform import frames_to_pixels
from bimba.model.compressor import build_compressor
from bimba.model.selection import Measure, Watched, last_scan, selection_map, watch
from bimba.types import BimbaError, Frames

TOP = 0.05
RESAMPLES = 10_000


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="outputs/demo/train/checkpoint")
    parser.add_argument("--data", type=Path, default=Path("data/needle/test"), help="a folder with annotations.json")
    parser.add_argument("--clips", type=int, help="the first so many (default: all)")
    parser.add_argument(
        "--skip", type=int, default=0, help="leave out the first so many of them (default: %(default)s)"
    )
    parser.add_argument("--num-frames", type=int, help="frames sampled of each clip (default: the checkpoint's)")
    parser.add_argument("--measure", choices=get_args(Measure), default="gated", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the untrained compressor and the bootstrap")
    parser.add_argument("--json", type=Path, help="write the scores of every clip, clip by clip")
    options = parser.parse_args()
    try:
        scores = measure(options)
    except (BimbaError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"in the top {TOP:.0%}, with a 95 % interval; tokens, and frames in brackets")
    for (task, name, what, direction, of), found in scores.items():
        if of == "tokens":
            of_frames = spread(scores[task, name, what, direction, "frames"], options.seed)
            row = f"{task:<11}{name:<11}{what:<21}{direction:<10}{len(found):>4} clips"
            print(f"{row}  {spread(found, options.seed)}  ({of_frames})")
    return 0


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[tuple[str, ...], list[float]]:
    """(task, compressor, map, direction, tokens or frames) -> the score of each clip."""
    model, processor = load_pretrained(options.checkpoint)
    model.eval()
    trained = model.compressor
    torch.manual_seed(options.seed)
    fresh = build_compressor(model.config.compressor, model.config.text_config.hidden_size)
    if options.measure == "change":
        last_scan(fresh).mixer.out_proj.reset_parameters()
    compressors = {"trained": trained, "untrained": fresh.to(model.device, model.dtype).eval()}
    scores: dict[tuple[str, ...], list[float]] = defaultdict(list)
    side = json.loads((options.data / "config.json").read_text())["config"]["needle_px"]
    clips = json.loads((options.data / "annotations.json").read_text())[options.skip : options.clips]
    for number, clip in enumerate(clips, start=1):
        frames = read_frames(options.data / clip["video"], options.num_frames or processor.num_frames)
        pixel_values = frames_to_pixels(frames, processor.image_processor).to(model.device, model.dtype)
        for name, compressor in compressors.items():
            model.compressor = compressor
            with watch(compressor) as seen:
                model.encode_video(pixel_values)
            shows = needle_tokens(clip, side, frames, seen[-1])
            for (what, direction), values in maps(seen[-1], name, options.measure).items():
                key = (clip["task"], name, what, direction)
                scores[(*key, "tokens")].append(in_top(values, shows))
                scores[(*key, "frames")].append(in_top(values.sum((1, 2)), shows.any(2).any(1)))
        if number % 20 == 0:
            print(f"{number} of {len(clips)} clips", file=sys.stderr)
        if options.json:  # as it goes
            options.json.write_text(json.dumps({" / ".join(key): found for key, found in scores.items()}, indent=1))
    return dict(sorted(scores.items()))


def maps(watched: Watched, name: str, measure: Measure) -> dict[tuple[str, str], Tensor]:
    """(mean or max over queries, direction) -> (T, H, W)."""
    found: dict[tuple[str, str], Tensor] = {}
    selection = selection_map(watched, measure=measure)
    for over, values in (("mean", selection.total), ("max", selection.per_query.amax(1))):
        found[over, "both"] = values.sum(0)
        found |= {(over, direction): of_one for direction, of_one in zip(selection.directions, values)}
    if name == "trained":
        found["length of the token", "-"] = watched.tokens[0].norm(dim=-1).view(watched.grid)
    return found


def needle_tokens(clip: Mapping[str, Any], side: int, frames: Frames, watched: Watched) -> Tensor:
    """(T, H, W) bool: which tokens show a needle of ``side`` pixels: those whose square overlaps with one."""
    height, width = frames.pixels.shape[1:3]
    T, H, W = watched.grid
    indices = frames.indices[watched.frames.numpy()]
    shows = torch.zeros(T, H, W, dtype=torch.bool)
    for needle in clip["needles"]:
        visible = (indices >= needle["start"]) & (indices < needle["start"] + needle["length"])
        rows = slice(needle["y"] * H // height, -(-(needle["y"] + side) * H // height))
        columns = slice(needle["x"] * W // width, -(-(needle["x"] + side) * W // width))
        shows[torch.from_numpy(visible), rows, columns] = True
    return shows


def in_top(values: Tensor, shows: Tensor) -> float:
    """The share of the tokens that show a needle which are among the top 5 %; equal values share a place's chance."""
    top = max(1, round(TOP * values.numel()))
    threshold = values.flatten().topk(top).values[-1]
    above = values > threshold
    # So that a map of one value scores what chance does.
    share = (top - int(above.sum())) / int((values == threshold).sum())
    return float((above[shows].float() + share * (values[shows] == threshold).float()).mean())


def spread(found: list[float], seed: int) -> str:
    """The mean over clips with its bootstrapped interval."""
    draws = np.random.default_rng(seed).choice(np.array(found), (RESAMPLES, len(found))).mean(1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return f"{np.mean(found):6.1%}  {low:5.1%} to {high:5.1%}"


if __name__ == "__main__":
    sys.exit(main())
