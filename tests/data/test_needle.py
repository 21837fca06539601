"""What a needle clip shows is what its answer says."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from bimba.data.needle import TASKS, NeedleConfig, conversation, digit_bank, render_clip
from bimba.data.prompt import LETTERS, multiple_choice
from bimba.types import BimbaError

CONFIG = NeedleConfig(num_video_frames=80, needle_frames=(3, 4), distractors=(0, 4))


def clip(task: str, seed: int = 0, config: NeedleConfig = CONFIG, **options):
    return render_clip(config, np.random.default_rng(seed), digit_bank("train"), task, **options)


@pytest.mark.parametrize("task", TASKS)
def test_a_seed_fixes_every_pixel(task):
    one, two, other = clip(task, 3), clip(task, 3), clip(task, 4)
    assert one.frames.tobytes() == two.frames.tobytes()
    assert (one.options, one.answer, one.needles) == (two.options, two.answer, two.needles)
    assert one.frames.tobytes() != other.frames.tobytes()


@pytest.mark.parametrize("task", TASKS)
def test_frames(task):
    frames = clip(task).frames
    assert frames.shape == (80, CONFIG.size, CONFIG.size, 3)
    assert frames.dtype == np.uint8


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seed", range(10))
def test_the_answer_is_what_is_shown(task, seed):
    shown = clip(task, seed)
    digits = [needle["digit"] for needle in shown.needles]
    expected = {
        "retrieval": lambda: str(digits[0]),
        "ordering": lambda: ", ".join(map(str, digits)),
        "counting": lambda: str(len(digits)),
    }[task]()
    assert shown.answer_text == expected == shown.options[LETTERS.index(shown.answer)]
    assert len(set(shown.options)) == 4
    starts = [needle["start"] for needle in shown.needles]
    assert starts == sorted(starts)


def test_needles_keep_their_distance_and_stay_inside():
    for seed in range(20):
        needles = clip("counting", seed, replace(CONFIG, distractors=(0, 0))).needles
        for one, two in zip(needles, needles[1:]):
            assert two["start"] - (one["start"] + one["length"]) >= CONFIG.needle_gap
        assert needles[-1]["start"] + needles[-1]["length"] <= CONFIG.num_video_frames
        assert all(0 <= n[axis] <= CONFIG.size - CONFIG.needle_px for n in needles for axis in "xy")


def test_a_needle_is_drawn_only_where_it_says():
    config = replace(CONFIG, distractors=(0, 0))
    shown = clip("retrieval", 5, config)
    (needle,) = shown.needles
    square = np.s_[needle["y"] : needle["y"] + config.needle_px, needle["x"] : needle["x"] + config.needle_px]
    first, last = needle["start"], needle["start"] + needle["length"] - 1
    still = [
        np.array_equal(shown.frames[t][square], shown.frames[t + 1][square]) for t in range(config.num_video_frames - 1)
    ]
    assert still == [first <= t < last for t in range(config.num_video_frames - 1)]


@pytest.mark.parametrize("letter", "ABCD")
def test_a_wanted_letter_is_right(letter):
    assert clip("retrieval", letter=letter).answer == letter


def test_letters_and_digits_are_spread():
    clips = [clip("retrieval", seed, replace(CONFIG, num_video_frames=4, distractors=(0, 0))) for seed in range(400)]
    assert min(Counter(c.answer for c in clips).values()) > 60
    assert min(Counter(c.answer_text for c in clips).values()) > 15


def test_no_digit_is_in_both_splits():
    train, test = (digit_bank(split) for split in ("train", "test"))
    assert sum(map(len, train.images)) + sum(map(len, test.images)) == 1797
    assert all(len(images) >= 20 for images in test.images)
    for a, b in zip(train.images, test.images):
        # Images may be alike by chance; the same drawing may not be in both.
        assert not {image.tobytes() for image in a} & {image.tobytes() for image in b}


@pytest.mark.parametrize("form", ["multiple_choice", "open_ended"])
def test_conversation(form):
    shown = clip("retrieval")
    human, gpt = conversation(shown, form)
    assert human["value"].startswith("<image>\n")
    if form == "multiple_choice":
        assert human["value"] == "<image>\n" + multiple_choice(shown.question, shown.options)
        assert gpt["value"] == shown.answer
    else:
        assert gpt["value"] == shown.answer_text


def test_errors_say_what_to_do():
    with pytest.raises(BimbaError, match=r"needles of up to 4 frames do not fit into 10 frames"):
        clip("counting", config=replace(CONFIG, num_video_frames=10, distractors=(3, 3)))
    with pytest.raises(BimbaError, match="'sorting'; expected one of retrieval"):
        clip("sorting")
    with pytest.raises(BimbaError, match="split 'val'"):
        digit_bank("val")
    with pytest.raises(BimbaError, match="form 'essay'"):
        conversation(clip("retrieval"), "essay")


@pytest.mark.parametrize(
    "wrong",
    [
        {"needle_frames": (5, 3)},
        {"needle_frames": (0, 3)},
        {"distractors": (2, 1)},
        {"needle_px": 100},
        {"needle_grid_px": 0},
        {"max_count": 0},
        {"num_video_frames": 0},
        {"ordering_needles": 2},
    ],
)
def test_an_impossible_clip_is_refused(wrong):
    with pytest.raises(BimbaError, match=next(iter(wrong))):
        replace(CONFIG, **wrong)
