"""What a compressor selected of a video, as pictures: its frames under heat, and a line along time.

Heat is the square root of what a token added, relative to the map's strongest thousandth: a few tokens add a hundred
times as much as most, and a linear scale would show nothing else. Colour-blind people can read the colours (inferno),
and what adds little stays transparent.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bimba.report.plots import BLUE, INK, ORANGE, SETTINGS, Plot

if TYPE_CHECKING:
    from bimba.model.selection import SelectionMap
    from bimba.types import Frames

BOTH = "both"
COLOURS = "inferno"
COLUMNS = 12  # frames in the picture
SHARE = 0.999  # the quantile at which heat is full


@dataclass(frozen=True)
class Drawn:
    """A selection map beside the frames it is about.

    Attributes:
        pixels: (T, height, width, 3) uint8.
        times_s, indices: (T,) of these frames in the video.
        maps: name -> (T, H, W) float; "both" first if there are two directions.
    """

    pixels: np.ndarray
    times_s: np.ndarray
    indices: np.ndarray
    maps: dict[str, np.ndarray]


def drawn(frames: Frames, selection: SelectionMap) -> Drawn:
    which = selection.frames.numpy()
    return Drawn(
        frames.pixels[which], frames.times_s[which], frames.indices[which], by_name(selection, selection.total.numpy())
    )


def by_name(selection: SelectionMap, values: np.ndarray) -> dict[str, np.ndarray]:
    """(R, ...) -> name -> (...): the directions, and in front of them their sum if they are two."""
    named = dict(zip(selection.directions, values))
    return {BOTH: values.sum(0), **named} if len(named) > 1 else named


def heat(values: np.ndarray) -> np.ndarray:
    """Any shape -> the same, from 0 to 1."""
    full = float(np.quantile(values, SHARE))
    full = full if full > 0 else float(values.max())  # fewer than a thousandth of them are not 0
    level: np.ndarray = np.sqrt(np.clip(values / full, 0, 1)) if full > 0 else np.zeros_like(values)
    return level


def contact_sheet(video: Drawn) -> Plot:
    """A column per frame: the frame, then under the heat of each map. Of each stretch the frame that gave most."""
    import matplotlib
    from matplotlib.figure import Figure

    names, columns = list(video.maps), _columns(next(iter(video.maps.values())))
    height, width = video.pixels.shape[1:3]
    across = 1.0 if len(columns) > 6 else 1.6  # inches
    with matplotlib.rc_context(SETTINGS):
        down = across * height / width
        figure = Figure(figsize=(across * len(columns) + 0.8, (down + 0.06) * (len(names) + 1) + 0.4))
        panels = figure.subplots(len(names) + 1, len(columns), squeeze=False)
        figure.subplots_adjust(0.8 / figure.get_figwidth(), 0.01, 0.998, 1 - 0.3 / figure.get_figheight(), 0.03, 0.03)
        for row, name in enumerate([None, *names]):
            level = None if name is None else heat(video.maps[name])
            for axes, t in zip(panels[row], columns):
                extent = (0, width, height, 0)
                axes.imshow(video.pixels[t] if level is None else _grey(video.pixels[t]), extent=extent)
                if level is not None:
                    axes.imshow(
                        level[t], COLOURS, alpha=level[t], vmin=0, vmax=1, extent=extent, interpolation="nearest"
                    )
                axes.set_xticks([])
                axes.set_yticks([])
                axes.spines[:].set_linewidth(0.4)
                if row == 0:
                    axes.set_title(f"{video.times_s[t]:.1f} s", fontsize=8, pad=3)
            panels[row][0].set_ylabel(name or "frame", rotation=0, ha="right", va="center")
    return Plot("selection", "Frames of the video under what the compressor selected of them.", figure)


def timeline(video: Drawn) -> Plot:
    """What each frame's tokens added together."""
    import matplotlib
    from matplotlib.figure import Figure

    looks = {BOTH: (INK, "-", ""), "forward": (BLUE, "-", "o"), "backward": (ORANGE, "--", "s")}
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(7.2, 2.4), layout="constrained")
        axes = figure.subplots()
        for name, values in video.maps.items():
            colour, line, mark = looks[name]
            axes.plot(video.times_s, values.sum((1, 2)), line, marker=mark, color=colour, markersize=3.5, label=name)
        axes.set_xlabel("time in the video, s")
        axes.set_ylabel("added by the frame")
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=INK, alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    return Plot("timeline", "What each frame's tokens added to the queries, along time.", figure)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """(height, width, 3) uint8 without its colours, which are the heat's."""
    light = pixels @ np.array([0.299, 0.587, 0.114])
    return np.repeat(light[..., None], 3, axis=-1).astype(np.uint8)


def jpeg(pixels: np.ndarray, side: int) -> str:
    """(height, width, 3) uint8, made no larger than ``side``, as a data URI."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def colour_table() -> list[list[int]]:
    """256 colours, (red, green, blue) from 0 to 255, from nothing to full heat."""
    import matplotlib

    table = matplotlib.colormaps[COLOURS](np.arange(256), bytes=True)[:, :3]
    return [[int(channel) for channel in colour] for colour in table]


def _columns(values: np.ndarray) -> list[int]:
    """Of each of ``COLUMNS`` equal stretches of the video, the frame with the strongest token."""
    peaks = values.max((1, 2))
    stretches = np.array_split(np.arange(len(peaks)), min(COLUMNS, len(peaks)))
    return [int(stretch[np.argmax(peaks[stretch])]) for stretch in stretches]
