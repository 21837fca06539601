"""All seven benchmarks in miniature, through ``evaluate.py``: compared with what was published, resumed, reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from replicas import SUITE, results

from bimba import cli
from lmms_eval_plugin.miniature import ANSWERS

REPOSITORY = Path(__file__).resolve().parents[2]
PUBLISHED = {
    "bimba_egoschema": 71.14,
    "vnbench": 77.88,
    "bimba_videomme": 64.67,
    "bimba_mlvu_dev": 71.37,
    "bimba_longvideobench_val_v": 59.46,
    "bimba_nextqa_mc_test": 83.73,
    "bimba_perceptiontest_val_mc": 68.51,
}


def test_evaluate_compares_all_seven_with_the_published_table(evaluate, run, tmp_path):
    summary = evaluate("benchmark=all")
    assert summary["benchmark"] == "suite"
    assert set(summary["tasks"]) == SUITE - {"bimba_egoschema"}
    found = results(run)["results"]
    for task, score in summary["tasks"].items():
        metric = "vnbench_per_try" if task == "vnbench" else "strict_accuracy"
        assert (score["n"], score["accuracy"]) == (len(ANSWERS[task]), pytest.approx(found[task][f"{metric},none"]))
    assert summary["tasks"]["bimba_longvideobench_val_v"]["chance"] == pytest.approx((1 / 2 + 1 / 3 + 1 / 5) / 3)
    assert {task: entry["published"] for task, entry in summary["published"].items()} == PUBLISHED
    for task, entry in summary["published"].items():
        assert entry["num_frames"] == results(run)["configs"][task]["generation_kwargs"]["num_frames"]
        assert entry["found_num_frames"] == 4
        if task == "bimba_egoschema":
            assert entry["found"] is None
        else:
            assert entry["found"] == pytest.approx(100 * found[task][f"{entry['metric']},none"])
        read = summary["readings"][task]
        names = {"strict_accuracy": "vnbench_per_try", "lenient_accuracy": "vnbench_per_try_lenient"}
        assert read == {
            name: found[task][f"{names.get(name, name) if task == 'vnbench' else name},none"] for name in read
        }
        assert set(read) >= {"no_letter", "outside_options"}
    assert summary["answers"] == "generate"
    assert (tmp_path / "out/submissions/bimba_egoschema.csv").is_file()
    table = (tmp_path / "out/summary.md").read_text()
    assert "| bimba_egoschema | 71.14 | elsewhere | submission |" in table
    macro = found["bimba_mlvu_dev"]["strict_macro,none"]
    assert f"| bimba_mlvu_dev | 71.37 | {100 * macro:.2f} | strict_macro |" in table
    report = (tmp_path / "out/report.md").read_text()
    assert f"| bimba_mlvu_dev | 71.37 | {100 * macro:.2f} |" in report
    assert summary["frames"] == dict.fromkeys(SUITE, 4)
    assert summary["failed_tasks"] == {}
    assert {change["key"]: change["value"] for change in summary["changes"]} == {
        "benchmark": "all",
        "num_frames": 4,
        "device": "cpu",
        "output_dir": f"{tmp_path}/out",
    }
    check_categories(summary, found)


def check_categories(summary, found):
    """Scores by category are the harness's own where it has them; every kind of metric is seen through."""
    columns = {task: list(of) for task, of in summary["categories"].items()}
    assert columns == {
        "vnbench": ["type"],
        "bimba_videomme": ["duration", "domain", "task_type"],
        "bimba_mlvu_dev": ["task_type"],
        "bimba_longvideobench_val_v": ["duration_group", "question_category", "topic_category"],
        "bimba_nextqa_mc_test": ["type"],
        "bimba_perceptiontest_val_mc": ["area", "reasoning", "tag"],
    }
    for kind, of in summary["categories"]["vnbench"]["type"].items():
        assert of["accuracy"] == pytest.approx(found["vnbench"][f"vnbench_per_try_{kind},none"])
    over = {task: {m: of["over"] for m, of in all_of.items()} for task, all_of in summary["measures"].items()}
    assert (over["vnbench"]["vnbench_per_try"], over["vnbench"]["vnbench_all_tries"]) == ("questions", "tries")
    assert (over["bimba_mlvu_dev"]["strict_macro"], over["bimba_mlvu_dev"]["mlvu_percetion_score"]) == (
        "types",
        "types",
    )
    assert over["bimba_videomme"]["videomme_perception_score"] == "questions"
    assert over["bimba_longvideobench_val_v"]["lvb_acc"] == "questions"
    assert over["bimba_perceptiontest_val_mc"]["accuracy"] == "questions"
    assert over["bimba_egoschema"]["submission"] is None


def test_a_second_run_on_the_folder_answers_nothing_again(evaluate):
    first = evaluate("benchmark=videomme")
    again = evaluate("benchmark=videomme", "logger=csv")
    assert (first["resumed_answers"], again["resumed_answers"]) == (0, 3)
    assert (again["throughput"]["answered"], again["throughput"]["questions_per_s"]) == (0, None)
    assert again["tasks"] == first["tasks"]
    assert len(again["fingerprint"]) == 64
    assert again["fingerprint"] == first["fingerprint"]


def test_a_task_without_a_result_fails_the_run_but_not_the_others(evaluate, tmp_path, monkeypatch):
    """The harness leaves tasks out that it could not build, and says nothing in its results."""
    from lmms_eval import evaluator

    complete = evaluator.simple_evaluate

    def without_nextqa(**arguments):
        found = complete(**arguments)
        for part in ("results", "samples"):
            del found[part]["bimba_nextqa_mc_test"]
        return found

    monkeypatch.setattr(evaluator, "simple_evaluate", without_nextqa)
    with pytest.raises(SystemExit, match="error: bimba_nextqa_mc_test failed") as stop:
        evaluate("benchmark=all")
    assert stop.value.code != 0
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert list(summary["failed_tasks"]) == ["bimba_nextqa_mc_test"]
    assert set(summary["tasks"]) == SUITE - {"bimba_egoschema", "bimba_nextqa_mc_test"}
    assert "FAILED: bimba_nextqa_mc_test" in (tmp_path / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("frame=8", "There is no key frame; did you mean frames"),
        ("chekpoint=x", "There is no key chekpoint; did you mean checkpoint"),
        ("xyz=1", "There is no key xyz; expected one of answers, base, "),
    ],
)
def test_a_key_that_there_is_not_is_named_with_the_one_that_was_meant(evaluate, override, message, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate(override)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_evaluate_chooses(evaluate, run, tmp_path):
    summary = evaluate("benchmark=all", "answers=choose")
    assert summary["answers"] == "choose"
    assert set(summary["tasks"]) == {f"{task}_choose" for task in SUITE - {"bimba_egoschema"}}
    found = results(run)["results"]
    for task, score in summary["tasks"].items():
        metric = "vnbench_per_try" if task == "vnbench_choose" else "strict_accuracy"
        assert score["accuracy"] == pytest.approx(found[task][f"{metric},none"])
        read = summary["readings"][task]
        assert read["strict_accuracy"] == read["lenient_accuracy"] == score["accuracy"]
        assert (read["no_letter"], read["outside_options"]) == (0, 0)
    assert {task: e["published"] for task, e in summary["published"].items()} == {
        f"{task}_choose": score for task, score in PUBLISHED.items()
    }
    assert (tmp_path / "out/submissions/bimba_egoschema_choose.csv").is_file()


@pytest.mark.parametrize(
    ("benchmark", "task", "num_frames"), [("videomme", "bimba_videomme", 64), ("vnbench", "vnbench", 128)]
)
def test_videos_are_read_with_the_published_number_of_frames(evaluate, tmp_path, benchmark, task, num_frames):
    """Unless a number is asked for; bimba-tiny makes twenty tokens of a frame."""
    summary = evaluate(f"benchmark={benchmark}", "num_frames=null", "limit=1")
    (sample,) = json.loads((tmp_path / f"out/samples/{task}.json").read_text())["samples"]
    words = len(sample["arguments"][0].encode())
    tokens = sample["token_counts"][0]["input_tokens"]
    assert 20 * num_frames < tokens < 20 * num_frames + words
    assert summary["published"][task]["found_num_frames"] == summary["published"][task]["num_frames"] == num_frames


def test_evaluate_without_a_score_still_writes_the_submission(evaluate, tmp_path):
    summary = evaluate("benchmark=egoschema")
    assert summary["tasks"] == {}
    assert summary["published"]["bimba_egoschema"]["published"] == 71.14
    samples = str(tmp_path / "out/samples/bimba_egoschema.json")
    assert cli.main(["egoschema-submission", samples, str(tmp_path / "again.csv")]) == 0
    written = (tmp_path / "out/submissions/bimba_egoschema.csv").read_text()
    assert (tmp_path / "again.csv").read_text() == written


def test_miniatures_need_neither_hub_nor_data(tmp_path):
    """In a process of its own: HF_HOME is read when libraries are imported."""
    command = [
        *(sys.executable, "evaluate.py", "benchmark=all", "benchmark.source=miniature", "num_frames=4", "device=cpu"),
        f"output_dir={tmp_path}/out",
    ]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "BIMBA_"))},
        **{name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")},
    }
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert {task: score["n"] for task, score in summary["tasks"].items()} == {
        task: len(letters) for task, letters in ANSWERS.items() if task in SUITE
    }
    assert summary["source"] == "miniature"
    html = (tmp_path / "out/report.html").read_text()
    assert html.count("<svg") == 1 + 6  # the overview, and every task with categories
    assert html.count('src="data:image/jpeg;base64,') == html.count("<img") > 50
    assert all(f'id="{task}"' in html for task in SUITE)
    assert "benchmark.source=miniature" in summary["command"]
    assert "scores mean nothing" in done.stdout + done.stderr


def test_an_unknown_source_is_an_error(evaluate):
    with pytest.raises(SystemExit, match="benchmark.source is 'hub'; expected one of hf_home, miniature"):
        evaluate("benchmark=all", "benchmark.source=hub")


def test_an_unknown_way_to_answer_is_an_error(evaluate):
    with pytest.raises(SystemExit, match="answers is 'guess'; expected one of generate, choose"):
        evaluate("benchmark=all", "answers=guess")


def test_questions_in_batches_have_the_same_answers(evaluate, tmp_path):
    def answered():
        return {path.name: [row["filtered_resps"] for row in json.loads(path.read_text())["samples"]] for path in files}

    evaluate("benchmark=mlvu")
    files = list((tmp_path / "out/samples").iterdir())
    expected = answered()
    summary = evaluate("benchmark=mlvu", "batch_questions=true")
    assert answered() == expected
    assert summary["resumed_answers"] == 0  # another setting, another key
