"""The miniature benchmarks with golden questions, packed as the repositories of the hub are.

Every question is one that the original implementation was asked, so that its golden prompt is the expected one.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from lmms_eval_plugin import miniature
from lmms_eval_plugin.miniature import ANSWERS, Replica, replicas, write_film

PROMPTS = json.loads((Path(__file__).parents[1] / "golden" / "text" / "prompts.json").read_text())
GOLDEN = PROMPTS["get_prompt"]
TIME_INSTRUCTION_ENDS = "\nSelect the best answer"  # one golden was asked with it; the published numbers were not
STOCK = ("videomme", "mlvu_dev", "longvideobench_val_v", "nextqa_mc_test", "perceptiontest_val_mc", "egoschema_subset")
OURS = ("bimba_suite", "bimba_egoschema_subset")  # each also with _choose
SUITE = {"bimba_egoschema", *ANSWERS} - {"bimba_egoschema_subset"}


@dataclass(frozen=True)
class Run:
    """What ``lmms-eval`` left behind: HF_HOME with everything fetched and unpacked, results, and who was asked."""

    home: Path
    output: Path
    journal: Path
    log: str
    outside: list[str]


def results(run: Run) -> dict:
    """The harness's results."""
    (path,) = run.output.rglob("*_results.json")
    return json.loads(path.read_text())


def samples(run: Run, task: str) -> list[dict]:
    """The harness's samples of a task."""
    (path,) = run.output.rglob(f"*_samples_{task}.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def golden(number: int) -> tuple[str, list[str], str]:
    """Question, options without letters, and the words of the published prompt, for a number of options.

    The golden with four options is the one with other alphabets and two lines.
    """
    cases = [
        case
        for case in GOLDEN
        if "prompt" in case
        and case["dataset"] in ("VideoMME", "EgoSchema")
        and len(case["sample"]["candidates"]) == number
    ]
    case = max(cases, key=lambda case: bool(case["kwargs"]))
    words = case["prompt"].split("<image>", 1)[1].removesuffix("<|im_end|>\n<|im_start|>assistant\n")
    if case["kwargs"]:
        words = words[words.index(TIME_INSTRUCTION_ENDS) + 1 :]
    return case["sample"]["question"], [option[len("A. ") :] for option in case["sample"]["candidates"]], words


def ask_golden(number: int) -> tuple[str, list[str]]:
    return golden(number)[:2]


def write_vnbench(root: Path) -> None:
    miniature.write_vnbench(root, ask_golden)


def write_hub(root: Path) -> None:
    """The six data sets of the hub, as repositories ``owner/name`` under ``root``."""
    for replica in replicas(ask_golden):
        folder = root / replica.repository
        if replica.repository == "longvideobench/LongVideoBench":
            _longvideobench(folder, replica)
        else:
            _parquet(folder / replica.config / f"{replica.split}-00000-of-00001.parquet", replica)
            with zipfile.ZipFile(folder / "videos_chunked_01.zip", "w") as archive:
                for name, film in _films(root, replica).items():
                    archive.write(film, name)
            _card(folder, replica)
    with zipfile.ZipFile(root / "lmms-eval/Video-MME/subtitle.zip", "w") as archive:
        archive.writestr("subtitle/film0.srt", "1\n00:00:00,000 --> 00:00:01,000\nnothing\n")


def _longvideobench(folder: Path, replica: Replica) -> None:
    """No configs in its card, JSON beside parquet, and one tar in two parts."""
    for split in ("validation", "test"):
        _parquet(folder / f"{split}-00000-of-00001.parquet", replica)
    (folder / "lvb_val.json").write_text(json.dumps(replica.rows))
    (folder / "README.md").write_text("# LongVideoBench\n")
    archive = folder.parent / "videos.tar"
    with tarfile.open(archive, "w") as tar:
        for name, film in _films(folder.parents[1], replica).items():
            tar.add(film, name)
    content = archive.read_bytes()
    archive.unlink()
    middle = len(content) // 2
    (folder / "videos.tar.part.aa").write_bytes(content[:middle])
    (folder / "videos.tar.part.ab").write_bytes(content[middle:])


def _films(root: Path, replica: Replica) -> dict[str, Path]:
    """Name in the archive -> file."""
    paths = {}
    for name, number in replica.films.items():
        paths[name] = root / "films" / f"{number}.mp4"
        if not paths[name].exists():
            write_film(paths[name], number)
    return paths


def _parquet(path: Path, replica: Replica) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(replica.rows)
    if replica.config == "GENERATION":  # its answers are empty, but of the type of the others
        column = table.schema.get_field_index("answer")
        table = table.set_column(column, "answer", pa.array([None] * len(table), pa.string()))
    pq.write_table(table, path)


def _card(folder: Path, replica: Replica) -> None:
    card = folder / "README.md"
    begun = card.read_text().removesuffix("---\n") if card.exists() else "---\nconfigs:\n"
    files = f"  data_files:\n  - split: {replica.split}\n    path: {replica.config}/{replica.split}-*\n"
    card.write_text(f"{begun}- config_name: {replica.config}\n{files}---\n")
