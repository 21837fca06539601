"""All questions of a run: the answers of one at a time, each video read once, whatever the order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tiny_checkpoint import NUM_FRAMES, tiny_model, write_video

import bimba.inference.engine as engine_module
from bimba.inference import Question, VideoQA
from bimba.inference.schedule import Work, answer_each
from bimba.inference.store import TokenStore
from bimba.types import BimbaError, ShortVideoError, VideoDecodeError


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return [str(write_video(folder / f"{i}.mp4", seed=i)) for i in range(3)]


@pytest.fixture
def reads(monkeypatch):
    """The files that are decoded, with the number of frames."""
    paths: list[tuple[str, int]] = []
    read_frames = engine_module.read_frames
    monkeypatch.setattr(
        engine_module, "read_frames", lambda p, n, **k: (paths.append((str(p), n)), read_frames(p, n, **k))[1]
    )
    return paths


def mixed_questions(videos, each=3):
    return [Question(videos[i % len(videos)], f"Question {i}?", max_new_tokens=6) for i in range(each * len(videos))]


@pytest.mark.parametrize("workers", [1, 3])
def test_answers_are_those_of_one_question_at_a_time_and_each_video_is_read_once(engine, videos, reads, workers):
    questions = mixed_questions(videos)
    work = Work()
    answers = engine.answer_all(questions, workers=workers, work=work)
    assert sorted(reads) == [(video, NUM_FRAMES) for video in videos]
    assert (work.decoded, work.stored, work.cached, work.answered) == (3, 0, 0, 9)
    alone = VideoQA(engine.model, engine.processor, cache_bytes=0)
    assert answers == [alone.encode(q.video).generate(q.prompt, 6) for q in questions]
    assert len({answer.text for answer in answers}) > 1  # or it would prove little that they are the same


def test_answers_come_video_by_video_as_soon_as_they_are_there(engine, videos):
    order = [i for i, _ in answer_each(engine, mixed_questions(videos))]
    assert order == [0, 3, 6, 1, 4, 7, 2, 5, 8]


def test_a_link_leads_to_the_same_video_and_another_number_of_frames_is_another(engine, videos, reads, tmp_path):
    link = tmp_path / "link.mp4"
    os.symlink(videos[0], link)
    questions = [Question(videos[0], "Who?"), Question(str(link), "What?"), Question(videos[0], "Who?", num_frames=2)]
    engine.answer_all(questions)
    assert sorted(reads) == [(videos[0], 2), (videos[0], NUM_FRAMES)]


def test_what_was_encoded_before_is_not_read_again(engine, videos, reads):
    engine.encode(videos[1])
    work = Work()
    engine.answer_all(mixed_questions(videos), work=work)
    assert (work.decoded, work.cached, len(reads)) == (2, 1, 3)


def test_the_same_question_is_answered_once_unless_it_is_drawn_by_lot(engine, videos):
    drawn = {"do_sample": True, "temperature": 5.0}
    questions = [Question(videos[0], "Who?", max_new_tokens=8)] * 3
    questions += [Question(videos[0], "Who?", max_new_tokens=8, sampling=drawn)] * 3
    torch.manual_seed(0)
    work = Work()
    answers = engine.answer_all(questions, work=work)
    assert work.answered == 4
    assert answers[0] == answers[1] == answers[2]
    assert len({answer.text for answer in answers[3:]}) > 1


def test_a_video_that_cannot_be_decoded_costs_its_own_questions(engine, videos, tmp_path):
    broken, empty = tmp_path / "broken.mp4", tmp_path / "empty.mp4"
    broken.write_bytes(Path(videos[0]).read_bytes()[:300])
    empty.write_bytes(b"")
    work = Work()
    questions = mixed_questions([videos[0], str(broken), str(empty)], each=2)
    answers = engine.answer_all(questions, work=work)
    assert [isinstance(answer, VideoDecodeError) for answer in answers] == [False, True, True] * 2
    assert sorted(work.unreadable) == [str(broken), str(empty)]
    assert "0 bytes" in work.unreadable[str(empty)]


def test_a_video_of_one_frame_is_short(engine, tmp_path):
    path = str(write_video(tmp_path / "one.mp4", num_frames=1))
    (refused,) = engine.answer_all([Question(path, "Who?")])
    assert isinstance(refused, ShortVideoError)
    work = Work()
    (answer,) = engine.answer_all([Question(path, "Who?", max_new_tokens=6)], short_videos="repeat", work=work)
    assert answer == engine.encode(path, short_videos="repeat").generate("Who?", 6)
    assert (work.short, work.unreadable) == ({path}, {})


def test_missing_videos_are_named_all_at_once_before_anything_is_read(engine, videos, reads):
    questions = mixed_questions([videos[0], "/no/a.mp4", "/no/b.mp4"])
    with pytest.raises(BimbaError, match=r"2 videos are missing: /no/a\.mp4, /no/b\.mp4\. Nothing was answered"):
        engine.answer_all(questions)
    assert reads == []


def test_no_workers_are_refused(engine, videos):
    with pytest.raises(BimbaError, match="workers is 0"):
        engine.answer_all(mixed_questions(videos), workers=0)


def test_decoded_videos_take_the_place_of_cached_ones(videos):
    engine = VideoQA(*tiny_model())
    per_video = engine.loaded_bytes(engine.identify(videos[0]))
    assert per_video == engine.read(videos[0]).nbytes
    engine.encode(videos[0])
    engine.cache.max_bytes = engine.cache.num_bytes + per_video
    assert engine.make_room(per_video) == per_video
    assert len(engine.cache) == 1
    assert engine.make_room(100 * per_video) == engine.cache.max_bytes
    assert len(engine.cache) == 0


def test_a_store_spares_the_next_run_decoding_and_encoding(videos, reads, tmp_path, monkeypatch):
    def run(seed: int = 0, change=None):
        engine = VideoQA(*tiny_model(seed), store=TokenStore(tmp_path / "tokens"))
        if change is not None:
            with torch.no_grad():
                change(engine.model)
        work = Work()
        return engine.answer_all(mixed_questions(videos), work=work), (work.decoded, work.stored)

    first, counts = run()
    assert counts == (3, 0)
    again, counts = run()
    assert (again, counts, len(reads)) == (first, (0, 3), 3)
    # The tokens do not depend on the language model, and on everything before it.
    other, counts = run(change=lambda model: model.language_model.lm_head.weight.neg_())
    assert counts == (0, 3)
    assert other != first
    assert run(change=lambda model: model.projector.state_dict().popitem()[1].add_(1))[1] == (3, 0)


def test_the_store_knows_which_videos_were_short(tmp_path):
    path = str(write_video(tmp_path / "short.mp4", num_frames=3))
    for decoded in (1, 0):
        engine = VideoQA(*tiny_model(), store=TokenStore(tmp_path / "tokens"))
        work = Work()
        engine.answer_all([Question(path, "Who?")], short_videos="repeat", work=work)
        assert (work.decoded, work.stored, work.short) == (decoded, 1 - decoded, {path})
