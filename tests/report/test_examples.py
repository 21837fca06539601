from __future__ import annotations

import io

import pytest
from harness import sample
from PIL import Image

from bimba.data.sampling import uniform_indices
from bimba.report.examples import FRAME_WIDTH, choose, examples, reference_letter, split_prompt


def test_right_and_wrong_ones_are_spread_over_the_data_set_and_always_the_same():
    samples = [sample(i, float(i % 2)) for i in range(10)]
    chosen = [(verdict, one["doc_id"]) for verdict, one in choose(samples, "strict_accuracy")]
    assert chosen == [("right", 1), ("right", 9), ("wrong", 0), ("wrong", 8)]
    assert [one["doc_id"] for _, one in choose(samples[::-1], "strict_accuracy")] == [1, 9, 0, 8]
    assert [(verdict, one["doc_id"]) for verdict, one in choose(samples, None)] == [
        *(("not scored", 0), ("not scored", 3)),
        *(("not scored", 6), ("not scored", 9)),
    ]
    assert [one["doc_id"] for _, one in choose(samples[:2], "strict_accuracy")] == [1, 0]


def test_the_frames_are_some_of_those_that_the_model_saw(film):
    asked = {0: (film, "Which?\nA. one\nB. two", 8)}
    (example,) = examples("quiz", [sample(0, 1.0, answer="A.")], "strict_accuracy", asked, "repeat", {})
    seen = uniform_indices(12, 8) / 8  # seconds
    assert [frame.time_s for frame in example.frames] == [seen[i] for i in (0, 1, 2, 4, 5, 7)]
    assert example.frames[-1].clock == "0:01.4"
    assert Image.open(io.BytesIO(example.frames[0].jpeg)).size == (FRAME_WIDTH, 132)
    assert example.frames[0].data_uri.startswith("data:image/jpeg;base64,")
    assert (example.verdict, example.reference, example.answer, example.video) == ("right", "A", "A.", "film.mp4")
    assert example.prompt == asked[0][1]


def test_a_video_that_cannot_be_read_is_a_note(tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"")
    (example,) = examples("quiz", [sample(0, 0.0)], "strict_accuracy", {0: (str(broken), "Which?", 4)}, "repeat", {})
    assert example.frames == []
    assert "an empty file" in example.note


def test_a_video_that_could_not_be_read_is_not_tried_again(film):
    asked, known = {0: (film, "Which?", 4)}, {film: "it took longer than 300 s"}
    (example,) = examples("quiz", [sample(0, 0.0)], "strict_accuracy", asked, "repeat", known)
    assert (example.frames, example.note) == ([], "it took longer than 300 s")


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Say.\nWhich?\nA. one\nB. two\nBest:", ("Say.\nWhich?", [("A", "A. one"), ("B", "B. two")], "Best:")),
        ("Describe it.", ("Describe it.", [], "")),
        ("Which?\nA) one\nB) two", ("Which?", [("A", "A) one"), ("B", "B) two")], "")),
    ],
)
def test_a_prompt_is_taken_apart_at_its_options(prompt, expected):
    assert split_prompt(prompt) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [("C", "C"), ("0", "A"), (2, "C"), ("4", "4"), (None, None), ("None", None), ("a dog", "a dog")],
)
def test_the_reference_is_a_letter_where_it_can_be(target, expected):
    assert reference_letter(target, 4) == expected
