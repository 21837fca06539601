import json

import pytest
import torch

from bimba.checkpoint import load_pretrained
from bimba.training.callbacks import BadVideoGuard, SaveCheckpoint
from bimba.types import BimbaError
from tests.training.fakes import FakeData, read_metrics, tiny_module, tiny_trainer


def fit(tmp_path, callbacks, max_steps=4, **data):
    module = tiny_module()
    tiny_trainer(tmp_path, max_steps, callbacks).fit(module, FakeData(module.processor, **data))
    return module


def test_bad_videos_are_counted_listed_and_shown(tmp_path):
    (tmp_path / "bad_videos.jsonl").write_text("of an earlier run")
    guard = BadVideoGuard(tmp_path, max_bad_share=0.5)
    fit(tmp_path, [guard], bad=[1, 2], val_bad=[5])
    assert (guard.seen, guard.bad) == (16, 3)  # in training, then in the validation after it
    lines = [json.loads(line) for line in (tmp_path / "bad_videos.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 0, "path": "1.mp4", "error": "1.mp4: truncated"},
        {"step": 1, "path": "2.mp4", "error": "2.mp4: truncated"},
        {"step": 4, "path": "5.mp4", "error": "5.mp4: truncated"},
    ]
    assert read_metrics(tmp_path)["data/bad_videos"] == [1, 2, 2, 2]


def test_a_sanity_check_lists_nothing_and_validation_meets_its_samples_again(tmp_path):
    guard, module = BadVideoGuard(tmp_path, max_bad_share=0.5), tiny_module()
    trainer = tiny_trainer(tmp_path, 4, [guard])
    trainer.num_sanity_val_steps = 2
    trainer.fit(module, FakeData(module.processor, val_bad=[1]))
    assert (guard.seen, guard.bad) == (16, 1)
    assert len((tmp_path / "bad_videos.jsonl").read_text().splitlines()) == 1


def test_one_bad_video_among_the_first_few_is_put_up_with(tmp_path):
    fit(tmp_path, [BadVideoGuard(tmp_path)], bad=[0])


def test_a_second_one_ends_the_run_and_the_message_says_why(tmp_path):
    with pytest.raises(BimbaError, match=r"2 of the first 4 samples .* at most 0.01 .* at least 100") as error:
        fit(tmp_path, [BadVideoGuard(tmp_path)], bad=[0, 3])
    assert str(tmp_path / "bad_videos.jsonl") in str(error.value)
    assert "3.mp4: truncated" in str(error.value)


def test_the_share_is_of_what_was_seen_once_that_is_enough(tmp_path):
    fit(tmp_path, [BadVideoGuard(tmp_path, max_bad_share=0.3, min_samples=4)], max_steps=4, bad=[3, 7])
    with pytest.raises(BimbaError, match="2 of the first 6"):
        fit(tmp_path, [BadVideoGuard(tmp_path, max_bad_share=0.3, min_samples=4)], max_steps=4, bad=[3, 5])


def test_only_bad_videos_end_the_run(tmp_path):
    with pytest.raises(BimbaError, match="2 of the first 2"):
        fit(tmp_path, [BadVideoGuard(tmp_path)], bad=range(8))


def test_zero_tolerance(tmp_path):
    with pytest.raises(BimbaError, match="1 of the first 2"):
        fit(tmp_path, [BadVideoGuard(tmp_path, max_bad_share=0.0)], bad=[0])


@pytest.mark.parametrize("wrong", [{"max_bad_share": 1.5}, {"min_samples": 0}])
def test_wrong_guard_settings_are_explained(tmp_path, wrong):
    with pytest.raises(BimbaError, match=next(iter(wrong))):
        BadVideoGuard(tmp_path, **wrong)


def test_the_checkpoint_at_the_end_is_the_trained_model(tmp_path):
    module = fit(tmp_path, [SaveCheckpoint(tmp_path)])
    loaded, processor = load_pretrained(tmp_path / "checkpoint")
    batch = next(iter(FakeData(processor, length=2).train_dataloader()))
    inputs = {key: value for key, value in batch.items() if key != "bad_samples"}
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, module.model.eval()(**inputs).logits, rtol=1e-4, atol=1e-4)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".checkpoint")]


def saved_steps(monkeypatch):
    steps = []
    monkeypatch.setattr("bimba.training.callbacks.save_pretrained", lambda *_: steps.append(None))
    return steps


def test_every_n_steps_and_the_end_without_saving_twice(tmp_path, monkeypatch):
    steps = saved_steps(monkeypatch)
    callback = SaveCheckpoint(tmp_path, every_n_steps=2)
    (tmp_path / "checkpoint").mkdir()
    fit(tmp_path, [callback], max_steps=5)
    assert len(steps) == 3  # after 2, 4 and 5
    assert callback._saved_at_step == 5
    fit(tmp_path, [SaveCheckpoint(tmp_path, every_n_steps=2)], max_steps=4)
    assert len(steps) == 5  # after 2 and 4


def test_a_model_that_cannot_be_written_on_the_way_is_told_and_training_goes_on(tmp_path, monkeypatch, caplog):
    tries = []

    def full(*_):
        tries.append(None)
        if len(tries) == 1:
            raise BimbaError("the disk is full.")

    monkeypatch.setattr("bimba.training.callbacks.save_pretrained", full)
    (tmp_path / "checkpoint").mkdir()
    fit(tmp_path, [SaveCheckpoint(tmp_path, every_n_steps=2)], max_steps=4)
    assert len(tries) == 2
    assert "the disk is full. Training goes on, and tries again after 2 steps." in caplog.text
    tries.clear()
    fit(tmp_path, [SaveCheckpoint(tmp_path, every_n_steps=2)], max_steps=2)
    assert len(tries) == 2  # in vain, then at the end
    tries.clear()
    with pytest.raises(BimbaError, match="the disk is full"):
        fit(tmp_path, [SaveCheckpoint(tmp_path)], max_steps=2)


def test_a_run_of_no_steps_leaves_the_model_it_began_with(tmp_path):
    fit(tmp_path, [SaveCheckpoint(tmp_path)], max_steps=0)
    load_pretrained(tmp_path / "checkpoint")


class StopAt(SaveCheckpoint):
    """Raises after a step, then does what ``SaveCheckpoint`` does."""

    def __init__(self, run_dir, step, exception):
        super().__init__(run_dir)
        self.step, self.exception = step, exception

    def on_train_batch_end(self, trainer, pl_module, *args):
        super().on_train_batch_end(trainer, pl_module, *args)
        if trainer.global_step == self.step:
            raise self.exception


@pytest.mark.parametrize(
    ("exception", "raised"), [(KeyboardInterrupt(), SystemExit), (BimbaError("too many bad videos"), BimbaError)]
)
def test_an_interrupted_run_keeps_what_it_learned(tmp_path, exception, raised):
    callback = StopAt(tmp_path, 2, exception)
    with pytest.raises(raised):
        fit(tmp_path, [callback])
    load_pretrained(tmp_path / "checkpoint")
    assert callback._saved_at_step == 2


def test_after_any_other_error_the_last_checkpoint_stays(tmp_path, monkeypatch):
    steps = saved_steps(monkeypatch)
    with pytest.raises(RuntimeError, match="out of memory"):
        fit(tmp_path, [StopAt(tmp_path, 2, RuntimeError("out of memory"))])
    assert steps == []


def test_save_every_zero_steps_is_an_error(tmp_path):
    with pytest.raises(BimbaError, match="every_n_steps"):
        SaveCheckpoint(tmp_path, every_n_steps=0)


def test_a_folder_that_must_not_be_replaced_is_told_at_the_start(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint/notes.txt").write_text("mine")
    with pytest.raises(BimbaError, match=r"it also holds: notes.txt"):
        fit(tmp_path, [SaveCheckpoint(tmp_path)], max_steps=10**6)
