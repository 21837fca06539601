"""How the folders of a sweep's cells are called."""

import pytest

from bimba.sweep.names import LENGTH, cell_folder


@pytest.mark.parametrize(
    ("overrides", "shared", "name"),
    [
        (["experiment=a", "model/compressor=mamba", "seed=1"], ["experiment"], "compressor=mamba,seed=1"),
        (["trainer.max_steps=5", "+model.compressor.num_layers=2"], [], "max_steps=5,num_layers=2"),
        (["model.config.num_frames=8", "data.num_frames=4"], [], "model.config.num_frames=8,data.num_frames=4"),
        (["seed=1"], ["seed"], "seed=1"),  # nothing else to be called by
        ([], [], "defaults"),
        (["optimizer.lr=0.001"], [], "lr=0.001"),
    ],
)
def test_a_cell_is_called_by_what_differs(overrides, shared, name):
    assert cell_folder(overrides, shared) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("checkpoint='a b'", "checkpoint=a/b"),
        ("data.tasks={retrieval:1}", "data.tasks=[retrieval,1]"),
        ("~logger", "logger=without"),
        (f"checkpoint={'x' * 300}1", f"checkpoint={'x' * 300}2"),
        (f"checkpoint='{'模型' * 50}1'", f"checkpoint='{'模型' * 50}2'"),  # letters of three bytes
    ],
)
def test_what_no_file_can_be_called_is_still_told_apart(one, other, tmp_path):
    names = [cell_folder([override]) for override in (one, other)]
    assert names[0] != names[1]
    for name in names:
        (tmp_path / name).mkdir()
        assert "/" not in name and " " not in name and len(name.encode()) <= LENGTH + 9
