"""Which checkpoint ``resume=`` means, and that a run of another configuration is not gone on with."""

import logging

import pytest

from bimba.training.checkpointing import write_whole
from bimba.training.resume import check_same_config, checkpoint_to_resume
from bimba.types import BimbaError

CONFIG = {
    "seed": 1,
    "optimizer": {"lr": 0.001},
    "data": {"global_batch_size": 8, "num_workers": 1, "prepare": {"root": "data"}},
    "trainer": {"devices": 2, "max_steps": 10},
    "logger": {},
}


@pytest.fixture
def run_dir(tmp_path):
    for step in (1, 2):
        write_whole({"global_step": step}, tmp_path / f"run/resume/step_{step:08d}.ckpt", CONFIG)
    return tmp_path / "run"


def test_a_run_its_folder_or_a_file(run_dir):
    newest = run_dir / "resume/step_00000002.ckpt"
    for name in (run_dir, run_dir / "resume", newest):
        assert checkpoint_to_resume(str(name), run_dir.parent / "new") == newest
    before = run_dir / "resume/step_00000001.ckpt"
    assert checkpoint_to_resume(str(before), run_dir) == before
    assert checkpoint_to_resume(None, run_dir) is None


def test_auto_is_the_newest_of_this_run_or_the_beginning(run_dir, caplog):
    with caplog.at_level(logging.INFO):
        assert checkpoint_to_resume("auto", run_dir) == run_dir / "resume/step_00000002.ckpt"
        assert checkpoint_to_resume("auto", run_dir.parent / "new") is None
    assert "so the run starts from the beginning" in caplog.text


def test_auto_leaves_out_a_damaged_file_and_says_so(run_dir, caplog):
    (run_dir / "resume/step_00000002.ckpt").write_bytes(b"")
    assert checkpoint_to_resume("auto", run_dir) == run_dir / "resume/step_00000001.ckpt"
    assert "step_00000002.ckpt has 0 bytes of the" in caplog.text


def test_a_damaged_file_that_is_named_is_an_error(run_dir):
    newest = run_dir / "resume/step_00000002.ckpt"
    newest.write_bytes(b"")
    with pytest.raises(BimbaError, match="has 0 bytes of the"):
        checkpoint_to_resume(str(newest), run_dir)


def test_what_is_not_there_is_an_error(tmp_path):
    with pytest.raises(BimbaError, match="is no file and no folder; expected auto"):
        checkpoint_to_resume("nowhere", tmp_path)
    with pytest.raises(BimbaError, match="has no whole checkpoint file"):
        checkpoint_to_resume(str(tmp_path), tmp_path)


def changed(**changes):
    return {key: {**value, **changes.get(key, {})} if isinstance(value, dict) else changes.get(key, value)
            for key, value in CONFIG.items()}  # fmt: skip


def test_another_configuration_is_shown_key_by_key(run_dir, caplog):
    path = run_dir / "resume/step_00000002.ckpt"
    other = changed(seed=2, optimizer={"lr": 0.01, "schedule": "cosine"})
    with pytest.raises(BimbaError) as error:
        check_same_config(path, other, changes_allowed=False)
    for line in ("optimizer.lr: 0.001 -> 0.01\n", "optimizer.schedule: (none) -> cosine\n", "seed: 1 -> 2\n"):
        assert f"  {line}" in str(error.value)
    assert "or resume_with_changes=true" in str(error.value)
    check_same_config(path, other, changes_allowed=True)
    assert "optimizer.lr: 0.001 -> 0.01" in caplog.text


def test_what_only_another_machine_needs_may_change(run_dir):
    other = changed(
        data={"num_workers": 8, "prepare": {"root": "elsewhere"}}, trainer={"devices": 1}, logger={"csv": {}}
    )
    check_same_config(run_dir / "resume/step_00000002.ckpt", other, changes_allowed=False)


def test_the_length_of_an_epoch_cannot_change(run_dir):
    other = changed(data={"global_batch_size": 4})
    with pytest.raises(BimbaError, match="data.global_batch_size cannot change"):
        check_same_config(run_dir / "resume/step_00000002.ckpt", other, changes_allowed=True)
