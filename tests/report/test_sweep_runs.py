"""Which runs are found, what is read of them, and what makes a report impossible or doubtful."""

from __future__ import annotations

import json

import pytest
from sweep_folder import CODE, write_run

from bimba.report.sweep.cell import FAILED, FINISHED, UNFINISHED, Cell, read_cell
from bimba.report.sweep.collect import find_runs
from bimba.report.sweep.configs import changes_of, defaults_of, shared_changes
from bimba.report.sweep.label import label_cells
from bimba.report.sweep.notices import notices
from bimba.report.sweep.plots import compression_plot, frames_plot
from bimba.report.sweep.summary import summarise
from bimba.report.sweep.tables import accuracy_tables, cell_table
from bimba.types import BimbaError

QUIZ = {"test": {"quiz": [1, 0, 1, 1]}}


def cells_of(*given):
    return [read_cell(found) for found in find_runs([str(one) for one in given])]


def test_a_sweep_its_runs_and_a_pattern_are_the_same_runs(tmp_path):
    for name in ("2", "10", "1"):
        write_run(tmp_path / "sweep" / name, seed=int(name))
    (tmp_path / "sweep" / "sweep.json").write_text("[]")
    names = [found.name for found in find_runs([str(tmp_path / "sweep")])]
    assert names == ["1", "2", "10"]
    assert sorted(found.name for found in find_runs([str(tmp_path / "sweep" / "*")])) == sorted(names)
    every = [str(path) for path in (tmp_path / "sweep").iterdir()]  # as a shell would write the pattern
    assert sorted(found.name for found in find_runs([*every, *every])) == sorted(names)
    assert [found.name for found in find_runs([str(tmp_path / "sweep" / "10")])] == ["10"]


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (None, "nothing", "no such folder"),
        (lambda root: (root / "empty").mkdir(), "empty", "is no run and holds none: expected run.json or config.yaml"),
        (lambda root: (root / "file").write_text(""), "file", "only files"),
        (lambda root: (root / "sweep.json").write_text('[{"name": 1}]'), ".", "not the list of a sweep's cells"),
    ],
)
def test_what_is_no_run_is_named(tmp_path, make, given, message):
    if make:
        make(tmp_path)
    with pytest.raises(BimbaError, match=message) as caught:
        find_runs([str(tmp_path / given)])
    assert str(tmp_path) in str(caught.value)


def test_cells_that_are_not_finished_have_their_reason(tmp_path):
    write_run(tmp_path / "good", evaluations=QUIZ)
    write_run(tmp_path / "bad", status="failed", error="the loss is no number")
    write_run(tmp_path / "on", status="running")
    write_run(tmp_path / "lost", status="running")
    write_run(tmp_path / "stopped", status="failed", error="SIGTERM ended the run after step 5")
    write_run(tmp_path / "torn")
    (tmp_path / "torn" / "run.json").write_text('{"status": "fin')
    (tmp_path / "sweep.json").write_text(
        json.dumps(
            [
                {"cell": "never", "status": "failed", "error": "no such compressor"},
                {"cell": "lost", "status": "failed", "error": "killed by SIGKILL"},
                {"cell": "later", "status": "waiting", "error": None},
                {"cell": "stopped", "status": "interrupted", "error": "SIGTERM ended the run after step 5"},
            ]
        )
    )
    found = {cell.name: cell for cell in summarise(cells_of(tmp_path)).others}
    assert (found["bad"].status, found["bad"].reason) == (FAILED, "the loss is no number")
    assert (found["never"].status, found["never"].reason) == (FAILED, "no such compressor")
    assert found["on"].status == UNFINISHED and "running, or interrupted" in found["on"].reason
    assert found["on"].reason.endswith("has begun") and found["lost"].reason.endswith("how: killed by SIGKILL")
    assert found["later"].status == UNFINISHED and found["later"].reason.startswith("not begun")
    assert (found["stopped"].status, found["stopped"].reason) == (UNFINISHED, "SIGTERM ended the run after step 5")
    assert found["torn"].status == FAILED and "run.json cannot be read" in found["torn"].reason


def test_a_sweep_without_a_finished_cell_is_an_error(tmp_path):
    write_run(tmp_path / "a", status="failed", error="out of memory")
    with pytest.raises(BimbaError, match=r"None of the 1 cells is finished.*a failed \(out of memory\)"):
        summarise(cells_of(tmp_path))


def test_runs_of_before_there_was_run_json_count_by_their_checkpoint(tmp_path):
    folder = write_run(tmp_path / "a", evaluations=QUIZ)
    (folder / "run.json").unlink()
    (cell,) = cells_of(folder)
    assert (cell.status, cell.reason) == (UNFINISHED, "no checkpoint yet")
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "config.json").write_text("{}")
    (folder / "code.json").write_text(json.dumps(CODE))
    (cell,) = cells_of(folder)
    assert cell.status == "finished" and cell.version == CODE and list(cell.evaluations) == ["test"]


def test_labels_are_what_varies_within_a_compressor_and_seeds_are_replicas(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / f"pool{seed}", "pool", seed)
        for reduction in ([2, 2], [4, 2]):
            write_run(tmp_path / f"mamba{reduction[0]}-{seed}", "mamba", seed, settings={"reduction": reduction})
    cells = cells_of(tmp_path)
    assert [(cell.name, label.name) for cell, label in zip(cells, label_cells(cells))] == [
        *(("mamba2-1", "mamba reduction=[2, 2]"), ("mamba2-2", "mamba reduction=[2, 2]")),
        *(("mamba4-1", "mamba reduction=[4, 2]"), ("mamba4-2", "mamba reduction=[4, 2]")),
        *(("pool1", "pool"), ("pool2", "pool")),
    ]
    assert label_cells(cells)[0].without(("reduction",)) == "mamba"


def test_a_seed_that_follows_the_seed_is_no_label_and_one_that_does_not_is_the_same_for_all(tmp_path):
    fixed = {"data.prepare.seed": 0, "model.compressor.name": "a"}
    cells = [Cell("", tmp_path, FINISHED, config={"seed": n, "data.seed": n, **fixed}) for n in (0, 1, 2)]
    assert {label.name for label in label_cells(cells)} == {"a"}


def test_a_cell_is_compared_with_the_default_that_has_its_compressor(tmp_path):
    defaults, remark = defaults_of(["mamba", "pool"])
    assert remark == "" and "model.compressor.d_state" not in defaults["pool"]
    of_this_run = {"seed": 7, "paths.run_dir": "elsewhere", "resume": "auto"}
    pool = Cell("a", tmp_path, FINISHED, config={**defaults["pool"], **of_this_run})
    assert changes_of(pool, defaults) == []
    changed = {**of_this_run, "trainer.max_steps": 9, "model.compressor.d_state": 32}
    mamba = Cell("b", tmp_path, FINISHED, config={**defaults["mamba"], **changed})
    steps, state = (
        ("trainer.max_steps", str(defaults["mamba"]["trainer.max_steps"]), "9"),
        ("model.compressor.d_state", "16", "32"),
    )
    assert sorted(changes_of(mamba, defaults)) == sorted([steps, state])
    longer = Cell("c", tmp_path, FINISHED, config={**defaults["pool"], "trainer.max_steps": 9})
    assert shared_changes([mamba, longer], defaults) == [steps]


def test_a_node_that_became_null_and_an_empty_one_that_was_filled_are_one_line_each(tmp_path):
    defaults, _ = defaults_of(["pool"])
    config = {key: value for key, value in defaults["pool"].items() if not key.startswith("callbacks.predictions.")}
    del config["data.prepare.own"]
    config |= {"callbacks.predictions": None, "data.prepare.own.test.needle_frames": [3, 6]}
    assert sorted(changes_of(Cell("a", tmp_path, FINISHED, config=config), defaults)) == [
        ("callbacks.predictions", "(none)", "null"),
        ("data.prepare.own.test.needle_frames", "(none)", "[3, 6]"),
    ]


def test_a_compressor_that_conf_has_not_is_said_to_be_compared_with_nothing():
    defaults, remark = defaults_of(["no_such"])
    assert defaults == {} and "conf/model/compressor has no no_such" in remark


def test_mixed_code_is_flagged(tmp_path):
    other = {**CODE, "git": {"commit": "b" * 40, "dirty": False}, "packages": {"torch": "2.13"}, "devices": ["H100"]}
    write_run(tmp_path / "a", seed=1, evaluations=QUIZ)
    write_run(tmp_path / "b", seed=2, evaluations=QUIZ, code_version=other)
    found = notices(summarise(cells_of(tmp_path)))
    assert "MIXED CODE: the cells were made by 2 versions of the code. aaaaaaaaaa: a; bbbbbbbbbb: b." in found
    assert "MIXED PACKAGES: torch 2.14: a; 2.13: b." in found
    assert any(notice.startswith("OTHER DEVICES: cpu | H100") for notice in found)


def test_a_cell_that_other_code_began_is_flagged_though_all_cells_are(tmp_path):
    earlier = [{"bimba": "0.1.0", "git": {"commit": "c" * 40, "dirty": False}}]
    for seed in (1, 2):
        write_run(tmp_path / str(seed), "pool", seed, QUIZ, earlier_code=earlier)
    sweep = summarise(cells_of(tmp_path))
    (flag,) = notices(sweep)
    assert flag == "MIXED CODE: the cells were made by 2 versions of the code. cccccccccc then aaaaaaaaaa: 1, 2."
    assert cell_table(sweep).rows[0][4] == "cccccccccc then aaaaaaaaaa"


def test_one_code_is_not_flagged_but_uncommitted_changes_are(tmp_path):
    for seed in (1, 2):
        write_run(tmp_path / str(seed), "pool", seed, QUIZ)
    assert notices(summarise(cells_of(tmp_path))) == []
    dirty = {**CODE, "git": {"commit": "a" * 40, "dirty": True}}
    write_run(tmp_path / "3", "pool", 3, QUIZ, code_version=dirty)
    write_run(tmp_path / "4", "pool", 4, QUIZ, code_version={**dirty})
    (flag,) = notices(summarise(cells_of(tmp_path / "3", tmp_path / "4")))
    assert flag.startswith("UNCOMMITTED")


def test_an_evaluation_that_one_of_two_seeds_has_is_said_to_be_of_one(tmp_path):
    write_run(tmp_path / "1", "pool", 1, {"test": {"quiz": [1, 0]}, "frames_64": {"quiz": [1, 0]}})
    write_run(tmp_path / "2", "pool", 2, {"test": {"quiz": [1, 0]}})
    sweep = summarise(cells_of(tmp_path))
    assert [notice for notice in notices(sweep) if notice.startswith("ONE SEED: pool in frames_64. ")]
    (table,) = accuracy_tables(sweep)
    (row,) = table.rows
    assert row[-1].endswith("] (1 of 2 seeds)") and row[-2].endswith("]")


def test_of_two_runs_with_one_seed_the_newer_counts(tmp_path):
    write_run(tmp_path / "new", "pool", 1, {"test": {"quiz": [1, 1]}}, started="2026-11-25T00:00:00")
    write_run(tmp_path / "old", "pool", 1, {"test": {"quiz": [0, 0]}})
    sweep = summarise(cells_of(tmp_path))
    assert [cell.name for cell in sweep.cells] == ["new"] and sweep.scores[0].estimate.mean == 1
    assert any(notice.startswith("TWICE: old has the settings and the seed of new") for notice in notices(sweep))


def test_answers_that_do_not_fit_the_summary_are_not_used(tmp_path):
    folder = write_run(tmp_path / "a", "pool", 1, QUIZ)
    path = folder / "evaluation" / "test" / "samples" / "quiz.json"
    path.write_text(path.read_text().replace('"accuracy": 0.0', '"accuracy": 1.0'))
    sweep = summarise(cells_of(folder))
    found = notices(sweep)
    assert sweep.scores == []
    assert any("do not give the accuracy of 0.75" in notice for notice in found)
    assert any(notice.startswith("NO ACCURACY") for notice in found)


def test_the_baseline_is_met_with_the_same_seeds_and_questions_alone(tmp_path):
    write_run(tmp_path / "pool1", "pool", 1, {"test": {"quiz": [0, 0, 1, 1], "other": [1, 0]}})
    write_run(tmp_path / "mamba1", "mamba", 1, {"test": {"quiz": [1, 0, 1, 1], "other": [1, 0, 1]}})
    write_run(tmp_path / "mamba2", "mamba", 2, {"test": {"quiz": [1, 1, 1, 1]}})
    write_run(tmp_path / "conv3", "conv", 3, {"test": {"quiz": [1, 1, 1, 1]}})
    sweep = summarise(cells_of(tmp_path))
    (one,) = sweep.comparisons
    assert (one.label.name, one.task, one.estimate.mean, one.estimate.seeds) == ("mamba", "quiz", 0.25, 1)
    assert sweep.apart == [
        "conv, test, quiz: no seed in common with pool",
        "mamba, test, other: not the same questions as pool",
    ]


def test_the_baseline_is_not_met_with_another_compression_where_its_own_cell_is_missing(tmp_path):
    """pool with [8, 8] failed, so that reduction varies among mamba's cells alone."""
    for reduction in ([4, 2], [8, 8]):
        settings = {"reduction": reduction, "d_state": 16}
        write_run(tmp_path / f"mamba{reduction[0]}", "mamba", 1, QUIZ, settings=settings)
    write_run(tmp_path / "pool4", "pool", 1, QUIZ, settings={"reduction": [4, 2]})
    write_run(tmp_path / "pool8", "pool", 1, settings={"reduction": [8, 8]}, status="failed", error="no more memory")
    sweep = summarise(cells_of(tmp_path))
    assert [(one.label.name, one.baseline.name) for one in sweep.comparisons] == [("mamba reduction=[4, 2]", "pool")]
    assert sweep.apart == ["mamba reduction=[8, 8], test, quiz: 0 cells of pool with the same other settings"]


def test_the_baseline_with_more_settings_is_met_where_these_are_equal(tmp_path):
    for frames in (16, 32):
        write_run(tmp_path / f"pool{frames}", "pool", 1, QUIZ, trained_with=frames)
    write_run(tmp_path / "mamba", "mamba", 1, QUIZ, trained_with=32)
    sweep = summarise(cells_of(tmp_path))
    assert [(one.label.name, one.baseline.name) for one in sweep.comparisons] == [("mamba", "pool num_frames=32")]


def test_options_of_a_compressor_of_its_own_do_not_keep_it_from_the_baseline(tmp_path):
    for layers in (1, 2):
        write_run(tmp_path / f"mamba{layers}", "mamba", 1, QUIZ, settings={"num_layers": layers})
    write_run(tmp_path / "attention", "attention", 1, QUIZ, settings={"num_layers": 1})
    assert len(summarise(cells_of(tmp_path), "attention").comparisons) == 2


@pytest.mark.parametrize("baseline", ["side=left", "model.compressor.side=left"])
def test_a_setting_as_the_baseline_is_met_with_all_other_settings_equal(tmp_path, baseline):
    for side, width, right in [("left", 1, 0), ("left", 2, 1), ("right", 1, 1), ("middle", 2, 0), ("right", 3, 1)]:
        cell = tmp_path / f"{side}{width}"
        write_run(cell, "mamba", 1, {"test": {"quiz": [right, 1]}}, settings={"side": side, "width": width})
    write_run(tmp_path / "pool", "pool", 1, {"test": {"quiz": [1, 1]}})  # which has no sides
    sweep = summarise(cells_of(tmp_path), baseline)
    assert {(one.label.name, one.baseline.name, one.estimate.mean) for one in sweep.comparisons} == {
        ("mamba side=right width=1", "mamba side=left width=1", 0.5),
        ("mamba side=middle width=2", "mamba side=left width=2", -0.5),
    }
    assert sweep.apart == [f"mamba side=right width=3, test, quiz: 0 cells of {baseline} with the same other settings"]


def test_two_evaluations_of_as_many_frames_are_no_two_points_against_frames(tmp_path):
    evaluations = {"test": {"quiz": [1, 1]}, "hard": {"quiz": [0, 0]}, "frames_16": {"quiz": [1, 0]}}
    write_run(tmp_path / "a", "pool", 1, evaluations)
    picture = frames_plot(summarise(cells_of(tmp_path)))
    assert picture is not None and "quiz, pool: 50 % at 16, 100 % at 32." in picture.description


def test_models_trained_with_other_numbers_of_frames_are_lines_of_their_own(tmp_path):
    for frames, right in ((16, [1, 0]), (32, [1, 1])):
        evaluations = {f"frames_{frames}": {"quiz": right}, "frames_64": {"quiz": right}}
        write_run(tmp_path / f"{frames}", "pool", 1, evaluations, trained_with=frames)
    picture = frames_plot(summarise(cells_of(tmp_path)))
    assert picture is not None
    assert "quiz, pool num_frames=16: 50 % at 16, 50 % at 64" in picture.description
    assert "quiz, pool num_frames=32: 100 % at 32, 100 % at 64" in picture.description


def test_models_each_read_with_as_many_frames_as_they_were_trained_with_are_a_line_that_says_so(tmp_path):
    for frames, right in ((16, [1, 0]), (32, [1, 1])):
        write_run(tmp_path / f"{frames}", "pool", 1, {"test": {"quiz": right}}, num_frames=frames, trained_with=frames)
    write_run(tmp_path / "mamba", "mamba", 1, {"test": {"quiz": [0, 1]}, "frames_16": {"quiz": [0, 0]}})
    picture = frames_plot(summarise(cells_of(tmp_path)))
    assert picture is not None
    assert "quiz, pool (trained with as many): 50 % at 16, 100 % at 32" in picture.description
    assert "quiz, mamba: 0 % at 16, 50 % at 32" in picture.description


def test_models_that_compress_as_much_in_different_ways_are_lines_of_their_own(tmp_path):
    for name, reduction, tokens in (("a", [4, 2], 128), ("b", [1, 4], 128), ("c", [8, 8], 4)):
        counts = {"frames": 32, "patch_tokens": 2048, "visual_tokens": tokens}
        write_run(tmp_path / name, "pool", 1, QUIZ, settings={"reduction": reduction}, compression=counts)
    picture = compression_plot(summarise(cells_of(tmp_path)))
    assert (
        picture is not None and picture.description.count("75 % at") == picture.description.count("quiz, pool red") == 3
    )


def test_an_evaluation_that_no_cell_has_is_refused(tmp_path):
    write_run(tmp_path / "a", "pool", 1, QUIZ)
    with pytest.raises(BimbaError, match="'best'; there are: test"):
        summarise(cells_of(tmp_path), primary="best")
