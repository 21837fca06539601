"""``bimba report``, ``data``, ``prepare``, ``doctor``, ``egoschema-submission``."""

from __future__ import annotations

import json

import pytest

from bimba import cli
from tests.errors.case import USAGE, Case


def _check(name: str, words: list[str], *says: str, code: int = 1) -> Case:
    return Case(name, ["data", "check", *words], says, code)


CASES = [
    Case("no_command", [], ["required: COMMAND"], USAGE),
    Case("a_typo_in_the_command", ["aks", "clip.mp4"], ["invalid choice: 'aks' (choose from", "ask"], USAGE),
    _check("no_data", ["--all"], "the following arguments are required: MIXTURE", code=USAGE),
    Case("report_of_nothing", ["report", "nowhere", "--out", "r"], ["nowhere: no such folder", "Give a run's folder"]),
    Case(
        "report_of_another_folder",
        ["report", "folder", "--out", "r"],
        ["is no run and holds none", "folder", "expected run.json or config.yaml"],
    ),
    _check("no_such_mixture", ["nowhere.yaml"], "nowhere.yaml: no such mixture", "Expected a YAML file"),
    _check(
        "no_such_annotations", ["nowhere.json"], "nowhere.json: no such annotation file", "Expected .json or .jsonl"
    ),
    _check("a_typo_in_the_data", ["needel"], "There is no data=needel; did you mean data=needle?", "Expected one of"),
    _check("a_typo_in_a_key", ["needle", "data.sede=1"], "There is no key data.sede; did you mean data.seed?"),
    _check("a_typo_behind_an_option", ["needle", "--all", "data.sede=1"], "There is no key data.sede; did you mean"),
    _check("no_value", ["needle", "seed"], "'seed' cannot be read", "Expected KEY=VALUE"),
    _check("no_default", ["llava_video"], "has no default for data.annotations", "give data.annotations=..."),
    _check("a_key_of_a_mixture", ["key.yaml"], "has no 'json_path'", "{'json_pth': 'rows.json'}", "entry 1"),
    _check("a_share", ["share.yaml"], "sampling_strategy is 'fist:10%'; expected all, or first", "entry 1"),
    _check("a_bracket", ["brackets.yaml"], "brackets.yaml: not valid YAML", "line 2", "expected ',' or ']'"),
    _check("no_data_sets", ["no_list.yaml"], "no_list.yaml: no data sets", "Expected 'datasets', a list of entries"),
    _check(
        "no_such_videos",
        ["rows.json", "--checkpoint", "good", "--video-root", "nowhere"],
        "nowhere: no such folder. Expected the folder that the annotations' paths start from",
    ),
    _check("no_frames", ["rows.json", "--frames", "0"], "--frames is 0; expected 1 or more"),
    _check("no_length", ["rows.json", "--max-length", "0"], "--max-length is 0; expected 1 or more"),
    Case("a_typo_in_a_benchmark", ["prepare", "videome"], ["invalid choice: 'videome'", "'videomme'"], USAGE),
    Case(
        "videos_of_a_benchmark",
        ["prepare", "videomme", "--from", "nowhere"],
        ["--from nowhere is not a folder", "expected one that holds videos, or archives of them"],
        USAGE,
    ),
    Case(
        "a_home_that_is_a_file",
        ["prepare", "videomme", "--hf-home", "file"],
        ["which is a file; expected a folder", "HF_HOME is"],
    ),
    Case(
        "a_home_of_some_folder",
        ["prepare", "videomme"],
        ["HF_HOME is 'cache', which is not absolute", "Set it to an absolute path"],
        env={"HF_HOME": "cache"},
    ),
    Case(
        "answers_of_nothing",
        ["egoschema-submission", "nowhere.json", "out.csv"],
        ["nowhere.json is not a file", "give the samples of an EgoSchema evaluation"],
    ),
    Case(
        "answers_that_are_none",
        ["egoschema-submission", "broken.json", "out.csv"],
        ["does not hold EgoSchema answers", "broken.json", "give the samples that"],
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_says_what_is_wrong(case, refused):
    assert refused(case) == ""


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (
            "rows.json",
            [
                "rows.json, row 1: a turn is {'from': 'user', 'value': 'Who?'}. Expected {'from': 'human' or 'gpt'",
                "rows.json, row 2: there is no",
                "gone.mp4",
                "text.mp4: not a media file",
            ],
        ),
        ("broken.json", ["broken.json: not valid JSON", "Repair the file or fetch it again."]),
        ("object.json", ["object.json: holds a JSON dict. Expected a list of rows, or a .jsonl file."]),
    ],
)
def test_rows_that_are_wrong_are_findings(file, says, capsys):
    """What is wrong with data is the answer of this command, in full, and no error."""
    assert cli.main(["data", "check", file, "--checkpoint", "good"]) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    for piece in says:
        assert piece in " ".join(captured.out.split())


def test_findings_are_shown_although_their_page_cannot_be_written(capsys):
    code = cli.main(["data", "check", "rows.json", "--checkpoint", "good", "--html", "file/page.html"])
    captured = capsys.readouterr()
    assert code == cli.FAILED
    assert "rows.json, row 1" in captured.out
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: file/page.html cannot be written (")
    assert last.endswith("); give another --html.")


def test_doctor_finds_the_variable_that_names_no_backend(monkeypatch, capsys):
    monkeypatch.setenv("BIMBA_SCAN_BACKEND", "cuda")
    assert cli.main(["doctor", "--json"]) == 1
    said = json.dumps(capsys.readouterr().out)
    assert "no backend is called so; set BIMBA_SCAN_BACKEND to one of: auto" in said
