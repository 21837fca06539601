"""A key that there is not is answered with the one that was meant."""

import pytest

from bimba.overrides import unknown_keys
from tests.conf.conftest import ROOT


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["trainer.max_stepps=3"], ["There is no key trainer.max_stepps; did you mean trainer.max_steps?"]),
        (["trianer.max_stesp=3"], ["There is no key trianer.max_stesp; did you mean trainer.max_steps?"]),
        (["data.prepare.tsaks={}"], ["There is no key data.prepare.tsaks; did you mean data.prepare.tasks?"]),
        (["traner=gpu"], ["There is no key traner; did you mean trainer?"]),
        (["model/compresor=pool"], ["There is no key model/compresor; did you mean model/compressor?"]),
        (["lr=1"], ["There is no key lr; did you mean optimizer.lr?"]),  # of that name, elsewhere
        (["-m", "optimizer.matrixlr=1,2"], ["There is no key optimizer.matrixlr; did you mean optimizer.matrix_lr?"]),
        (["optimizer.lr.x=1"], ["There is no key optimizer.lr.x; optimizer.lr has no keys of its own."]),
        (["hydra.run.dri=x"], ["There is no key hydra.run.dri; did you mean hydra.run.dir?"]),
        (["sead=1", "trainer=gpu", "~pathes"], [
            "There is no key sead; did you mean seed?",
            "There is no key pathes; did you mean paths?",
        ]),
    ],
)  # fmt: skip
def test_the_nearest_key_is_named(arguments, lines):
    assert unknown_keys(ROOT / "conf", "train", arguments) == lines


def test_a_key_of_another_choice_is_named_with_those_that_have_it():
    arguments = ["model/compressor=pool", "model.compressor.question_conditioned=true"]
    (line,) = unknown_keys(ROOT / "conf", "train", arguments)
    assert line.startswith("There is no key model.compressor.question_conditioned; those that have it: ")
    assert "model/compressor=mamba" in line
    assert "pool" not in line.split("have it")[1]


def test_without_a_near_one_the_choice_is_listed():
    (line,) = unknown_keys(ROOT / "conf", "train", ["paths.nonsense=1"])
    assert line == "There is no key paths.nonsense; expected one of data_dir, output_dir, root, run_dir."


@pytest.mark.parametrize(
    "arguments",
    [
        ["trainer.max_steps=3", "trainer=fsdp", "trainer.strategy.timeout_s=1"],
        ["-m", "trainer=fsdp,cpu", "trainer.strategy.timeout_s=1"],
        ["+trainer.extra=1", "++extra=2"],  # added on purpose
        ["trainer=nonsense"],  # Hydra lists the options
        ["no override"],
    ],
)
def test_what_is_no_unknown_key_is_left_to_hydra(arguments):
    assert unknown_keys(ROOT / "conf", "train", arguments) == []
