"""Needles in long videos: the embedded data set, rendered here (written to mp4 by ``needle_files``).

A clip is a haystack, a moving texture, into which a few needles are inserted at random moments and places: real
handwritten digits (scikit-learn's), each on a small tile and visible for a fraction of a second. Three of VNBench's
task types ask about them: *retrieval* (which digit), *ordering* (in which order), *counting* (how many).
Everything is a function of the random generator handed in, so a seed fixes every pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from bimba.data.prompt import LETTERS, multiple_choice, open_ended, with_medium
from bimba.types import BimbaError

TASKS = ("retrieval", "ordering", "counting")
QUESTIONS = {
    "retrieval": "Which digit appears in the video?",
    "ordering": "In which order do the digits appear in the video?",
    "counting": "How many digits appear in the video?",
}
NUM_OPTIONS = 4


@dataclass(frozen=True)
class NeedleConfig:
    """What a clip looks like, and so how hard it is.

    Attributes:
        num_video_frames: length of the clip in frames.
        fps: frames per second.
        size: height and width in pixels.
        needle_px: height and width of a needle in pixels.
        needle_grid_px: needles sit at multiples of this many pixels.
        needle_frames: least and greatest number of frames for which a needle is visible.
        needle_gap: fewest frames between two needles.
        ordering_needles: how many digits an ordering clip shows.
        max_count: greatest number of digits in a counting clip.
        distractors: least and greatest number of scrambled digits, which no question counts.
        contrast: peak-to-peak strength of the haystack's texture, 0 to 1.
    """

    num_video_frames: int = 96
    fps: int = 8
    size: int = 96
    needle_px: int = 12
    needle_grid_px: int = 12
    needle_frames: tuple[int, int] = (4, 6)
    needle_gap: int = 4
    ordering_needles: int = 3
    max_count: int = 4
    distractors: tuple[int, int] = (0, 2)
    contrast: float = 0.7

    def __post_init__(self) -> None:
        for key in ("needle_frames", "distractors"):
            low, high = getattr(self, key)
            if not 0 <= low <= high or (key == "needle_frames" and low < 1):
                raise BimbaError(f"{key} is ({low}, {high}); expected the least number, then the greatest.")
        if not 1 <= self.needle_px <= self.size or self.needle_grid_px < 1:
            raise BimbaError(
                f"needle_px is {self.needle_px} and needle_grid_px {self.needle_grid_px} in {self.size}-pixel clips; "
                "expected at least 1 pixel, and needles no larger than the clip."
            )
        if self.max_count < 1 or self.num_video_frames < 1:
            raise BimbaError(
                f"max_count is {self.max_count} and num_video_frames {self.num_video_frames}; expected 1 or more."
            )
        if not 3 <= self.ordering_needles <= 10:
            raise BimbaError(
                f"ordering_needles is {self.ordering_needles}; expected 3 to 10: two digits have only two orders, and "
                "a question has four options."
            )


@dataclass(frozen=True)
class DigitBank:
    """Handwritten digits of one split: ``images[d]`` is (n, 8, 8) float32 in [0, 1]."""

    split: str
    images: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class NeedleClip:
    """A rendered clip and its question.

    Attributes:
        frames: (T, size, size, 3) uint8, RGB.
        needles: per digit ``digit, start, length`` (frames) and ``x, y`` (pixels), in order of appearance.
        options: four option texts without letters; ``answer`` is the right one's letter, ``answer_text`` its text.
    """

    frames: np.ndarray
    needles: list[dict[str, int]]
    task: str
    question: str
    options: list[str]
    answer: str
    answer_text: str


@cache
def digit_bank(split: str) -> DigitBank:
    """The digits of a split. Every fifth image of scikit-learn's 1,797 is for testing: no image is in both.

    Raises:
        BimbaError: the split is neither 'train' nor 'test'.
    """
    if split not in ("train", "test"):
        raise BimbaError(f"Unknown needle split {split!r}; expected 'train' or 'test'.")
    from sklearn.datasets import load_digits

    data = load_digits()
    held_out = np.arange(len(data.target)) % 5 == 0
    mine = held_out if split == "test" else ~held_out
    images = (data.images / 16.0).astype(np.float32)
    return DigitBank(split, tuple(images[mine & (data.target == d)] for d in range(10)))


def render_clip(
    config: NeedleConfig, rng: np.random.Generator, digits: DigitBank, task: str, letter: str | None = None
) -> NeedleClip:
    """Draws one clip and its four-option question.

    Args:
        letter: the letter that shall be right (to balance a data set); random when None.

    Raises:
        BimbaError: an unknown task, or needles that do not fit into the clip.
    """
    match task:
        case "retrieval":
            shown = rng.permutation(10)[:1]
            wrong = [str(d) for d in rng.permutation(np.setdiff1d(np.arange(10), shown))[: NUM_OPTIONS - 1]]
            answer_text = str(shown[0])
        case "ordering":
            shown = rng.permutation(10)[: config.ordering_needles]
            answer_text = _listing(shown)
            wrong = _other_orders(shown, rng)
        case "counting":
            count = int(rng.integers(1, config.max_count + 1))
            shown = rng.integers(0, 10, count)
            others = np.setdiff1d(np.arange(1, max(config.max_count, NUM_OPTIONS) + 1), [count])
            wrong = [str(c) for c in rng.permutation(others)[: NUM_OPTIONS - 1]]
            answer_text = str(count)
        case _:
            raise BimbaError(f"Unknown needle task {task!r}; expected one of {', '.join(TASKS)}.")

    right = int(rng.integers(NUM_OPTIONS)) if letter is None else LETTERS.index(letter)
    options = [*wrong[:right], answer_text, *wrong[right:]]
    frames, needles = _render(config, rng, digits, shown)
    return NeedleClip(frames, needles, task, QUESTIONS[task], options, LETTERS[right], answer_text)


def conversation(clip: NeedleClip, form: str = "multiple_choice") -> list[dict[str, str]]:
    """The clip's question and answer as a LLaVA conversation; ``form`` is 'multiple_choice' or 'open_ended'.

    Raises:
        BimbaError: an unknown form.
    """
    match form:
        case "multiple_choice":
            prompt, answer = multiple_choice(clip.question, clip.options), clip.answer
        case "open_ended":
            prompt, answer = open_ended(clip.question), clip.answer_text
        case _:
            raise BimbaError(f"Unknown question form {form!r}; expected 'multiple_choice' or 'open_ended'.")
    return [{"from": "human", "value": with_medium(prompt)}, {"from": "gpt", "value": answer}]


def _listing(digits: np.ndarray) -> str:
    return ", ".join(str(d) for d in digits)


def _other_orders(digits: np.ndarray, rng: np.random.Generator) -> list[str]:
    """Three wrong orders of the same digits."""
    orders = [_listing(digits)]
    while len(orders) < NUM_OPTIONS:
        order = _listing(rng.permutation(digits))
        if order not in orders:
            orders.append(order)
    return orders[1:]


def _render(
    config: NeedleConfig, rng: np.random.Generator, digits: DigitBank, shown: np.ndarray
) -> tuple[np.ndarray, list[dict[str, int]]]:
    frames = _haystack(config, rng)
    num_distractors = int(rng.integers(config.distractors[0], config.distractors[1] + 1))
    # Digits keep their order of appearance; distractors fall anywhere between them.
    is_digit = rng.permutation(np.arange(len(shown) + num_distractors) < len(shown))
    starts, lengths = _moments(config, rng, len(is_digit))
    queue = [int(d) for d in shown]
    needles: list[dict[str, int]] = []
    for start, length, real in zip(starts, lengths, is_digit):
        digit = queue.pop(0) if real else int(rng.integers(10))
        image = rng.choice(digits.images[digit])
        if not real:
            image = rng.permutation(image.reshape(-1)).reshape(image.shape)
        places = (config.size - config.needle_px) // config.needle_grid_px + 1
        y, x = (int(v) * config.needle_grid_px for v in rng.integers(0, places, 2))
        tile = _tile(image, config.needle_px, rng)
        frames[start : start + length, y : y + config.needle_px, x : x + config.needle_px] = tile * 255
        if real:
            needles.append({"digit": digit, "start": start, "length": length, "x": x, "y": y})
    return frames, needles


def _moments(config: NeedleConfig, rng: np.random.Generator, count: int) -> tuple[list[int], list[int]]:
    """Start frames and lengths of ``count`` needles that keep ``needle_gap`` frames between them."""
    lengths = rng.integers(config.needle_frames[0], config.needle_frames[1] + 1, count)
    free = config.num_video_frames - int(lengths.sum()) - config.needle_gap * max(count - 1, 0)
    if free < 0:
        raise BimbaError(
            f"{count} needles of up to {config.needle_frames[1]} frames do not fit into {config.num_video_frames} "
            "frames; make the clip longer or the needles fewer or shorter."
        )
    before = np.sort(rng.integers(0, free + 1, count))
    starts = before + np.concatenate([[0], np.cumsum(lengths + config.needle_gap)[:-1]]).astype(int)
    return [int(s) for s in starts], [int(n) for n in lengths]


def _haystack(config: NeedleConfig, rng: np.random.Generator) -> np.ndarray:
    """(T, size, size, 3) uint8: two periodic noise textures that drift across each other."""
    size, frames = config.size, np.empty((config.num_video_frames, config.size, config.size, 3), np.uint8)
    layers = []
    for _ in range(2):
        texture = np.zeros((3, size, size), np.float32)
        for cells, weight in ((4, 0.5), (8, 0.3), (16, 0.2)):
            up = _periodic_upsampling(cells, size)
            texture += weight * (up @ rng.random((3, cells, cells), np.float32) @ up.T)
        doubled = np.tile(texture.transpose(1, 2, 0), (2, 2, 1))
        layers.append((doubled, rng.random(2) * size, rng.normal(0, 1.5, 2)))
    level = rng.random(3, np.float32) * (1 - config.contrast)
    for t in range(config.num_video_frames):
        views = []
        for doubled, start, velocity in layers:
            y, x = ((start + velocity * t) % size).astype(int)
            views.append(doubled[y : y + size, x : x + size])
        frames[t] = ((views[0] + views[1]) * (config.contrast / 2) + level) * 255
    return frames


@cache
def _periodic_upsampling(cells: int, size: int) -> np.ndarray:
    """(size, cells) linear interpolation weights on a circle."""
    where = np.arange(size) * cells / size
    low, share = where.astype(int), (where % 1).astype(np.float32)
    weights = np.zeros((size, cells), np.float32)
    weights[np.arange(size), low] = 1 - share
    weights[np.arange(size), (low + 1) % cells] += share
    return weights


@cache
def _digit_upsampling(pixels: int) -> np.ndarray:
    """(pixels, 8) linear interpolation weights from a digit's 8 pixels, edges held."""
    where = np.clip((np.arange(pixels) + 0.5) * 8 / pixels - 0.5, 0, 7)
    low = np.minimum(where.astype(int), 6)
    share = (where - low).astype(np.float32)
    weights = np.zeros((pixels, 8), np.float32)
    weights[np.arange(pixels), low] = 1 - share
    weights[np.arange(pixels), low + 1] = share
    return weights


def _tile(image: np.ndarray, pixels: int, rng: np.random.Generator) -> np.ndarray:
    """(pixels, pixels, 3): the digit in a bright colour on a dark tile."""
    up = _digit_upsampling(pixels)
    ink = (up @ image @ up.T)[..., None]
    bright, dark = 0.7 + 0.3 * rng.random(3, np.float32), 0.25 * rng.random(3, np.float32)
    return ink * bright + (1 - ink) * dark
