"""All seven benchmarks in miniature, through the installed harness: fetched, unpacked, asked, answered, scored."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from replicas import STOCK, SUITE, Run, golden

from bimba import VideoQA, cli
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

READ = {"strict_accuracy", "lenient_accuracy", "no_letter", "outside_options", "no_reference"}
METRICS = {
    "bimba_egoschema": {"answered", "submission", "no_letter", "outside_options"},
    "bimba_egoschema_subset": {*READ, "score"},
    "bimba_videomme": {*READ, "videomme_perception_score"},
    "bimba_mlvu_dev": {*READ, "strict_macro", "lenient_macro", "mlvu_percetion_score"},
    "bimba_longvideobench_val_v": {*READ, "lvb_acc", "chance"},
    "bimba_nextqa_mc_test": {*READ, "exact_match"},
    "bimba_perceptiontest_val_mc": {*READ, "accuracy"},
    "vnbench": {
        *("vnbench_per_try", "vnbench_per_try_lenient", "vnbench_all_tries", "no_letter", "outside_options"),
        *(f"vnbench_{score}_{kind}" for score in ("per_try", "all_tries") for kind in ("ret_insert1", "cnt_edit2")),
    },
}
CHOSEN = [f"{task}_choose" for task in METRICS]
NUM_OPTIONS = {
    **{task: [4] for task in ("vnbench", "bimba_videomme", "bimba_mlvu_dev")},
    **{task: [5] for task in ("bimba_egoschema", "bimba_egoschema_subset", "bimba_nextqa_mc_test")},
    **{"bimba_perceptiontest_val_mc": [3], "bimba_longvideobench_val_v": [2, 3, 5]},
}


def results(run: Run) -> dict:
    (path,) = run.output.rglob("*_results.json")
    return json.loads(path.read_text())


def samples(run: Run, task: str) -> list[dict]:
    (path,) = run.output.rglob(f"*_samples_{task}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_task_of_the_suite_and_every_stock_name_has_a_result(run):
    found = results(run)["results"]
    assert set(found) - {"bimba_suite", "bimba_suite_choose"} == {*METRICS, *CHOSEN, *STOCK}
    for task, metrics in (METRICS | {f"{task}_choose": metrics for task, metrics in METRICS.items()}).items():
        values = {key.removesuffix(",none"): value for key, value in found[task].items() if "_stderr" not in key}
        assert set(values) - {"alias", " "} >= metrics, task
        assert all(isinstance(values[metric], int | float) for metric in metrics)


@pytest.mark.parametrize("task", METRICS)
def test_prompts_are_the_published_ones_byte_for_byte(run, task):
    asked = [sample["input"] for sample in samples(run, task)]
    numbers = NUM_OPTIONS[task]
    assert asked == [golden(number)[2] for number in (numbers if len(numbers) > 1 else numbers * len(asked))]


@pytest.mark.parametrize("task", METRICS)
def test_generation_is_as_published(run, task):
    assert results(run)["configs"][task]["generation_kwargs"] == {
        "max_new_tokens": 4096,
        "do_sample": False,
        "until": [],
        "num_frames": 128 if task == "vnbench" else 64,
    }


@pytest.mark.parametrize("task", METRICS)
def test_a_letter_is_chosen_after_the_very_prompt_that_is_answered_in_words(run, task):
    asked, chosen = samples(run, task), samples(run, f"{task}_choose")
    assert [sample["input"] for sample in chosen] == [sample["input"] for sample in asked]
    assert [str(sample["target"]) for sample in chosen] == [str(sample["target"]) for sample in asked]
    letters = [sample["filtered_resps"] for sample in chosen]
    numbers = NUM_OPTIONS[task] * (1 if len(NUM_OPTIONS[task]) > 1 else len(letters))
    assert all(letter in tuple("ABCDE"[:number]) for letter, number in zip(letters, numbers, strict=True))
    # The same journal has the probabilities, and keeps these answers apart from those in words.
    lines = [json.loads(line) for line in (run.journal / "journal-0.jsonl").read_text().splitlines()]
    kept = {line["doc_id"]: line for line in lines if line["task"] == f"{task}_choose"}
    for number, letter, sample in zip(numbers, letters, chosen):
        probabilities = kept[sample["doc_id"]]["probabilities"]
        assert list(probabilities) == list("ABCDE"[:number])
        assert sum(probabilities.values()) == pytest.approx(1)
        assert letter == max(probabilities, key=probabilities.get)
    assert not any("probabilities" in line for line in lines if line["task"] == task)


def test_a_chosen_letter_is_the_likeliest_first_word(run):
    engine = VideoQA.from_pretrained("bimba-tiny", device="cpu")
    task = "bimba_longvideobench_val_v"
    for i, (sample, number) in enumerate(zip(samples(run, f"{task}_choose"), NUM_OPTIONS[task], strict=True)):
        video = engine.encode(run.home / f"datasets/longvideobench/videos/film{i % 2}.mp4", num_frames=4)
        assert sample["filtered_resps"] == video.choose_letter(sample["input"], number).letter


@pytest.mark.parametrize("task", CHOSEN)
def test_a_chosen_letter_cannot_fail_to_parse(run, task):
    found = results(run)["results"][task]
    assert (found["no_letter,none"], found["outside_options,none"]) == (0, 0)
    if task != "bimba_egoschema_choose":
        strict, lenient = (
            ("vnbench_per_try", "vnbench_per_try_lenient")
            if task == "vnbench_choose"
            else ("strict_accuracy", "lenient_accuracy")
        )
        rows = samples(run, task)
        letters = ANSWERS[task.removesuffix("_choose")]
        right = [row["filtered_resps"] == letter for row, letter in zip(rows, letters, strict=True)]
        assert found[f"{strict},none"] == found[f"{lenient},none"] == pytest.approx(sum(right) / len(right))


@pytest.mark.parametrize("task", ANSWERS)
def test_scores_are_counted_from_the_answers(run, task):
    """The strict reading by hand; the numbers of the harness beside it are its own."""
    rows = samples(run, task)
    right = [row["filtered_resps"].strip(" .") == letter for row, letter in zip(rows, ANSWERS[task], strict=True)]
    metric = "vnbench_per_try" if task == "vnbench" else "strict_accuracy"
    assert [row[metric] for row in rows] == right
    assert results(run)["results"][task][f"{metric},none"] == pytest.approx(sum(right) / len(right))


def test_the_types_of_vnbench_are_those_of_its_files(run):
    tries = [sample["vnbench_all_tries"] for sample in samples(run, "vnbench")]
    assert [attempt["type"] for attempt in tries] == ["ret_insert1"] * 4 + ["cnt_edit2"] * 4
    assert [attempt["group"] for attempt in tries] == [0] * 4 + [1] * 4


def test_egoschema_is_a_file_and_nothing_was_sent(run):
    folder = run.output / "submissions"
    for task in ("bimba_egoschema", "bimba_egoschema_choose"):
        with (folder / f"{task}.csv").open(newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["q_uid", "answer"]
        assert [uid for uid, _ in rows[1:]] == ["uid-0", "uid-1"]
        answers = ["ABCDE".find(sample["filtered_resps"].strip(" .")) for sample in samples(run, task)]
        assert [int(answer) for _, answer in rows[1:]] == answers
        assert json.loads((folder / f"{task}.json").read_text()) == {uid: int(a) for uid, a in rows[1:]}
    hosts = {re.split(r"[/:]", address.split()[1].removeprefix("http://"))[0] for address in run.outside}
    # What libraries ask of their own accord: datasets for sizes, the stock NExT-QA module for nltk's word lists.
    assert hosts <= {"datasets-server.127.0.0.1", "raw.githubusercontent.com"}


def test_videos_are_those_the_harness_unpacked(run):
    for folder in ("videomme/data", "egoschema/videos", "mlvu", "nextqa/NExTVideo", "perceptiontest_val/videos"):
        assert list((run.home / folder).glob("*.mp4")), folder
    assert list((run.home / "datasets/longvideobench/videos").glob("*.mp4"))


@pytest.mark.parametrize("choose", [False, True])
def test_requests_carry_frames_video_and_words(offline, choose):
    from lmms_eval.tasks import TaskManager, get_task_dict

    from lmms_eval_plugin.manifest import TASKS_FOLDER

    manager = TaskManager(include_path=str(TASKS_FOLDER), include_defaults=False, model_name="bimba")
    ending = "_choose" if choose else ""
    ((_, tasks),) = get_task_dict([f"bimba_suite{ending}"], manager, "chat").items()
    assert set(tasks) == {f"{name}{ending}" for name in SUITE}
    for name, task in tasks.items():
        task.build_all_requests()
        assert all(instance.args[2].get("choose", False) is choose for instance in task.instances)
        frames = {instance.args[2]["num_frames"] for instance in task.instances}
        assert frames == {128 if name.startswith("vnbench") else 64}, name
        for instance in task.instances:
            (message,) = instance.args[1](task.dataset[instance.args[5]][instance.args[3]])
            video, text = message["content"]
            assert Path(video["url"]).is_file()
            assert text["text"] == instance.args[0]


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
def test_a_key_that_there_is_not_is_named_with_the_one_that_was_meant(evaluate, override, message):
    with pytest.raises(SystemExit, match=message):
        evaluate(override)


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


def test_the_command_reads_the_samples_of_the_harness(run, tmp_path, capsys):
    (samples_file,) = run.output.rglob("*_samples_bimba_egoschema.jsonl")
    assert cli.main(["egoschema-submission", str(samples_file), str(tmp_path / "s.csv")]) == 0
    assert (tmp_path / "s.csv").read_text() == (run.output / "submissions/bimba_egoschema.csv").read_text()
    assert capsys.readouterr().out.startswith("2 of 5031 answers are in ")


class Sent(Exception):
    """The stock EgoSchema task reached for its server."""


@pytest.mark.parametrize("safe", [True, False])
def test_the_harness_own_egoschema_sends_unless_it_only_predicts(offline, monkeypatch, safe):
    """docs/benchmarks.md says which flag is safe."""
    import lmms_eval.tasks
    from lmms_eval.evaluator import simple_evaluate

    from lmms_eval_plugin.models.bimba import Bimba

    def post(*args, **kwargs):
        raise Sent

    monkeypatch.setattr("requests.post", post)
    monkeypatch.chdir(offline.output)  # where the stock task leaves its file
    folder = Path(lmms_eval.tasks.__file__).parent / "egoschema"
    manager = lmms_eval.tasks.TaskManager(include_path=str(folder), include_defaults=False, model_name="bimba")
    model = Bimba(pretrained="bimba-tiny", device="cpu", num_frames=4)
    arguments = {"model": model, "tasks": ["egoschema"], "task_manager": manager, "bootstrap_iters": 0}
    if safe:
        results = simple_evaluate(**arguments, predict_only=True)
        assert [row["doc"]["video_idx"] for row in results["samples"]["egoschema"]] == ["uid-0", "uid-1"]
    else:
        with pytest.raises(Sent):
            simple_evaluate(**arguments)


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
