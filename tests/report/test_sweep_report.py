"""``bimba report`` on a small sweep: pages, pictures, tables, and the files for programs."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
from PIL import Image
from sweep_folder import write_run
from test_page import Page

from bimba import cli
from bimba.report.accuracy import wilson_interval
from bimba.report.sweep.style import Picture, legend, looks, panels

RIGHT = {"pool": [[1, 0, 0, 0], [0, 1, 0, 0]], "mamba": [[1, 1, 1, 0], [1, 1, 1, 1]]}
PICTURES = {"accuracy", "frames", "compression", "needle_length", "frontier", "costs", "loss"}


def write_sweep(root, hostile: str = ""):
    for compressor, of_seeds in RIGHT.items():
        for seed, right in enumerate(of_seeds, start=1):
            write_run(
                root / f"{compressor}{seed}",
                compressor,
                seed,
                {"test": {"bimba_needle_retrieval": right}, "frames_64": {"bimba_needle_retrieval": right[::-1]}},
                settings={"name": compressor, "num_layers": 3} if compressor == "mamba" else None,
                train_seconds={"pool": 50.0, "mamba": 80.0}[compressor] + seed,
                compression={
                    "frames": 32,
                    "patch_tokens": 2048,
                    "visual_tokens": {"pool": 64, "mamba": 128}[compressor],
                },
            )
    write_run(root / "worse", "mamba", 3, status="failed", error=f"no more memory {hostile}")
    return root


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """The report of a sweep of two compressors with two seeds, and a cell that failed."""
    root = tmp_path_factory.mktemp("sweep")
    assert cli.main(["report", str(write_sweep(root, "<script>|x|</script>")), "--out", str(root / "out")]) == 0
    return root / "out"


def test_the_page_is_whole_and_its_links_lead_somewhere(out):
    page = Page((out / "report.html").read_text())
    assert page.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.elements}
    sources = page.values("src")
    assert {source.removeprefix("plots/").removesuffix(".svg") for source in sources} == PICTURES
    anchors = {f"#{name}" for name in page.values("id")}
    for target in [*sources, *page.values("href")]:
        assert target in anchors if target.startswith("#") else (out / target).stat().st_size > 100
    assert all(len(attributes["alt"]) > 40 for tag, attributes in page.elements if tag == "img")
    assert "<script>|x|</script>" in page.text  # as words


def test_every_picture_is_drawn_in_both_kinds(out):
    assert {path.name for path in (out / "plots").iterdir()} == {f"{n}.{k}" for n in PICTURES for k in ("png", "svg")}
    for name in PICTURES:
        with Image.open(out / "plots" / f"{name}.png") as picture:
            grey = picture.convert("L")
            assert picture.width > 800 and grey.getpixel((0, 0)) == 255
            assert grey.getextrema()[0] < 80  # there is ink
        ElementTree.parse(out / "plots" / f"{name}.svg")


def test_a_long_legend_takes_no_room_from_the_panels():
    names = [f"mamba query_position=appended bidirectional=true backward_init=forward seed={n}" for n in range(8)]
    heights = []
    for shown in (names[:1], names):
        figure, (axes,) = panels(1, 4.2, 3.3)
        legend(figure, looks(shown))
        Picture("name", "title", "description", figure).drawn("png")
        heights.append(axes.get_position().height * figure.get_figheight())
    assert heights[1] > 0.9 * heights[0]


def test_markdown_has_the_same_tables_and_pictures(out):
    text = (out / "report.md").read_text()
    pictures = re.findall(r"^!\[.*\]\((.*)\)$", text, re.MULTILINE)
    assert len(pictures) == len(PICTURES) and all((out / picture).is_file() for picture in pictures)
    assert r"| worse | mamba | 3 | failed | aaaaaaaaaa | no more memory \<script\>\|x\|\</script\> |" in text
    rows = [line for line in text.splitlines() if line.startswith("| mamba |")]
    assert rows[0].startswith("| mamba | 16\N{MULTIPLICATION SIGN} | 2 | 87.5 \\[")
    page = Page((out / "report.html").read_text())
    for row in rows:
        for cell in row.strip("| ").split(" | "):
            assert cell.replace("\\", "") in page.text


def test_what_a_run_takes_is_two_tables_that_fit_the_page(out):
    tables = {
        block.splitlines()[0]: [line.strip("| ").split(" | ") for line in block.splitlines() if line.startswith("|")]
        for block in (out / "report.md").read_text().split("### ")
    }
    by_title = {title.split(":")[0]: rows for title, rows in tables.items() if "mean over the seeds" in title}
    time, sizes = by_title["Time and speed"], by_title["Memory and sizes"]
    assert time[0] == ["Compressor", "Training, s", "Evaluations, s", "Encoding a video, ms", "Compressor tokens, /s"]
    assert "Visual tokens per video" in sizes[0] and not set(time[0]) & set(sizes[0][1:])
    assert [row[0] for row in time[2:]] == [row[0] for row in sizes[2:]] == ["mamba", "pool"]
    assert time[2][1] == r"81.5 \(81 to 82\)"


def test_differences_from_pool_are_in_points(out):
    found = {(c["label"], c["evaluation"]): c for c in json.loads((out / "report.json").read_text())["comparisons"]}
    one = found["mamba", "test"]
    assert (one["mean"], one["by_seed"], one["seeds"], one["questions"]) == (0.625, [0.5, 0.75], 2, 4)
    assert "+62.5 [" in Page((out / "report.html").read_text()).text


def test_accuracy_by_the_length_of_the_needle(out):
    (score,) = [
        s
        for s in json.loads((out / "report.json").read_text())["scores"]
        if (s["label"], s["evaluation"]) == ("mamba", "test")
    ]
    by_length = score["by_needle_frames"]  # questions 0 and 2 have needles of 4 frames, 1 and 3 of 8
    assert {length: one["by_seed"] for length, one in by_length.items()} == {
        "4": {"1": 1.0, "2": 1.0},
        "8": {"1": 0.5, "2": 1.0},
    }


def test_the_settings_that_are_not_the_default_are_listed(out):
    text = (out / "report.md").read_text()
    assert r"| mamba | model.compressor.num\_layers | 1 | 3 |" in text
    assert r"| model.config.num\_frames |" not in text  # 32, as the default has it


def test_cells_are_rows_for_other_programs(out):
    with (out / "cells.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 + 1
    (row,) = [r for r in rows if (r["cell"], r["evaluation"]) == ("mamba1", "test")]
    assert float(row["accuracy"]) == 0.75
    assert (float(row["low"]), float(row["high"])) == pytest.approx(wilson_interval(3, 4))
    assert (row["num_frames"], row["compression"], row["train_seconds"], row["ms_per_video"]) == (
        *("32", "16.0"),
        *("81.0", "50.0"),
    )
    assert rows[-1]["cell"] == "worse" and rows[-1]["status"] == "failed"


def test_the_page_ends_with_the_command_that_makes_it_again(tmp_path):
    write_run(tmp_path / "a", "mamba", 1, {"hard": {"quiz": [1, 0, 1, 1]}})
    command = [
        "report",
        str(tmp_path / "a"),
        "--out",
        str(tmp_path / "out"),
        "--baseline",
        "mamba",
        "--evaluation",
        "hard",
    ]
    assert cli.main(command) == 0
    assert " ".join(["bimba", *command]) in (tmp_path / "out" / "report.md").read_text()


def test_a_sweep_without_evaluations_still_has_its_costs_and_losses(tmp_path, capsys):
    write_run(tmp_path / "a")
    assert cli.main(["report", str(tmp_path / "a"), "--out", str(tmp_path / "out")]) == 0
    assert "NO ACCURACY" in capsys.readouterr().err
    assert {path.stem for path in (tmp_path / "out" / "plots").iterdir()} == {"costs", "loss"}


@pytest.mark.parametrize(
    ("record", "message"),
    [({"status": "failed", "error": "boom"}, "None of the 1 cells is finished"), (None, "is no run and holds none")],
)
def test_user_errors_are_one_line_and_exit_1(tmp_path, capsys, record, message):
    if record:
        write_run(tmp_path / "sweep" / "a", **record)
    else:
        (tmp_path / "sweep").mkdir()
    assert cli.main(["report", str(tmp_path / "sweep"), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_wandb_has_the_tables_and_the_numbers_offline(tmp_path, monkeypatch):
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record
    from wandb.sdk.internal.datastore import DataStore

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("WANDB_SILENT", "true")
    write_run(tmp_path / "a", "pool", 1, {"test": {"quiz": [1, 0, 1, 1]}})
    assert cli.main(["report", str(tmp_path / "a"), "--out", str(tmp_path / "out"), "--wandb", "sweeps"]) == 0
    wandb.teardown()
    (path,) = (tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb")
    store = DataStore()
    store.open_for_scan(str(path))
    history = {}
    while data := store.scan_data():
        for item in Record.FromString(data).history.item:
            history["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    assert history["test/quiz/pool"] == 0.75
    assert history["tables/accuracy_quiz/_type"] == history["tables/cells/_type"] == "table-file"
    assert history["plots/accuracy/_type"] == "image-file"
