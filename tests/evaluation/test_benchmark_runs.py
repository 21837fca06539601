"""All seven benchmarks in miniature, through the installed harness: fetched, unpacked, asked, answered, scored."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from replicas import STOCK, SUITE, golden, results, samples

from bimba import VideoQA, cli
from lmms_eval_plugin.miniature import ANSWERS

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
