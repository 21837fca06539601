"""The seven benchmarks in miniature: true columns, folders and film files, a handful of questions about nothing.

``python evaluate.py benchmark=all benchmark.source=miniature`` writes them and runs the harness on them, to see that
all works on a machine before a benchmark's hundreds of gigabytes are there. Its scores mean nothing. The tests pack the
same rows and films into stand-ins of the hub's repositories.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bimba.data.prompt import LETTERS
from bimba.report.files import write_bytes
from bimba.types import BimbaError

Ask = Callable[[int], tuple[str, Sequence[str]]]  # number of options -> question, options without letters

MLVU_TYPES = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
VNBENCH_TYPES = ("ret_insert1", "cnt_edit2")
ANSWERS: Mapping[str, str] = {  # task -> the letters that are right, in the order of the documents
    "bimba_egoschema_subset": "EA",
    "vnbench": "ABCDBBCA",
    "bimba_videomme": "ABC",
    "bimba_mlvu_dev": "ABCDABC",
    "bimba_longvideobench_val_v": "ACE",
    "bimba_nextqa_mc_test": "AEB",
    "bimba_perceptiontest_val_mc": "CA",
}


@dataclass(frozen=True)
class Replica:
    """One table of a data set on the hub.

    Attributes:
        repository: ``owner/name``.
        cached: how the library datasets calls that in its cache.
        config, split, rows: the table.
        videos: folder below HF_HOME that the archives are unpacked in.
        films: path below ``videos`` -> number of the film.
    """

    repository: str
    cached: str
    config: str
    split: str
    rows: list[dict[str, Any]]
    videos: str
    films: dict[str, int]


def ask_nothing(number: int) -> tuple[str, Sequence[str]]:
    return "Which of these words stands first?", [f"Word {i + 1}." for i in range(number)]


def replicas(ask: Ask = ask_nothing) -> list[Replica]:
    """Two films and a few questions for each of the six benchmarks that are on the hub."""
    return [
        *_egoschema(*ask(5)),
        _videomme(*ask(4)),
        _mlvu(*ask(4)),
        _longvideobench(ask),
        _nextqa(*ask(5)),
        _perceptiontest(*ask(3)),
    ]


def write_home(home: Path) -> Path:
    """Writes an HF_HOME in which the harness finds everything without a hub (``HF_HUB_OFFLINE=1``), and returns it.

    VNBench is in its folder ``vnbench``. Films that are there stay.

    Raises:
        BimbaError: the folder cannot be written.
    """
    try:
        for replica in replicas():
            _write_cached(home / "datasets", replica)
            for name, number in replica.films.items():
                _provide_film(home / replica.videos / name, number)
        write_vnbench(home / "vnbench")
    except OSError as error:
        raise BimbaError(f"The miniatures cannot be written to {home} ({error.strerror or error}).") from error
    return home


def write_vnbench(root: Path, ask: Ask = ask_nothing) -> None:
    """Annotation and films as published, the confusion of two types included."""
    question, options = ask(4)
    rows = []
    for number, letter in enumerate(ANSWERS["vnbench"]):
        film, attempt = divmod(number, 4)
        kind = VNBENCH_TYPES[film]
        right = LETTERS.index(letter)
        rows.append(
            {
                "video": f"/VNBench_new/{kind}_{film}.mp4",
                "question": question,
                "options": list(options),
                "needle_time": [1.0],
                "gt": options[right],
                "gt_option": right,
                "length": 1.5,
                "type": "ret_insert2" if kind == "ret_insert1" else kind,
                "try": attempt,
            }
        )
    for film, kind in enumerate(VNBENCH_TYPES):
        _provide_film(root / f"VNBench_new/{kind}_{film}.mp4", film)
    (root / "VNBench-main-4try.json").write_text(json.dumps(rows), encoding="utf-8")


def write_film(path: Path, number: int, num_frames: int = 12) -> None:
    """A second and a half of noise, 64 × 48."""
    import numpy as np

    from bimba.data.needle_files import encode_mp4

    frames = np.random.default_rng(number).integers(0, 256, (num_frames, 48, 64, 3), dtype=np.uint8)
    write_bytes(path, encode_mp4(frames, fps=8))


def _provide_film(path: Path, number: int) -> None:
    if not path.exists():  # then it is whole, and always the same
        write_film(path, number)


def _write_cached(cache: Path, replica: Replica) -> None:
    """The table as the library datasets leaves it in its cache after a download."""
    import pyarrow as pa
    from datasets import Dataset

    dataset = Dataset.from_list(replica.rows)
    owner, name = replica.cached.split("/")
    folder = cache / f"{owner}___{name}" / replica.config / "0.0.0" / "miniature"
    table = dataset.data.table
    content = io.BytesIO()
    with pa.ipc.new_stream(content, table.schema) as stream:
        stream.write_table(table)
    write_bytes(folder / f"{name}-{replica.split}.arrow", content.getvalue())
    split = {"name": replica.split, "num_bytes": table.nbytes, "num_examples": len(dataset), "dataset_name": name}
    info = {
        "features": dataset.features.to_dict(),
        "builder_name": "parquet",
        "dataset_name": name,
        "config_name": replica.config,
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
        "splits": {replica.split: split},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")


def _lettered(options: Sequence[str]) -> list[str]:
    return [f"{letter}. {option}" for letter, option in zip(LETTERS, options)]


def _videomme(question: str, options: Sequence[str]) -> Replica:
    rows = [
        {
            "video_id": f"{i:03d}",
            "duration": duration,
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "url": "",
            "videoID": f"film{i % 2}",
            "question_id": f"{i:03d}-1",
            "task_type": "Counting Problem",
            "question": question,
            "options": _lettered(options),
            "answer": letter,
        }
        for i, (duration, letter) in enumerate(zip(("short", "medium", "long"), ANSWERS["bimba_videomme"]))
    ]
    films = {f"data/film{i}.mp4": i for i in range(2)}
    return Replica("lmms-eval/Video-MME", "lmms-eval/video-mme", "videomme", "test", rows, "videomme", films)


def _egoschema(question: str, options: Sequence[str]) -> list[Replica]:
    def table(config: str, answers: Sequence[str | None]) -> Replica:
        rows = [
            {
                "question_idx": str(i),
                "question": question,
                "video_idx": f"uid-{i}",
                "option": _lettered(options),
                "answer": answer,
            }
            for i, answer in enumerate(answers)
        ]
        films = {f"videos/uid-{i}.mp4": i for i in range(2)}
        return Replica("lmms-eval/egoschema", "lmms-eval/egoschema", config, "test", rows, "egoschema", films)

    public = [str(LETTERS.index(letter)) for letter in ANSWERS["bimba_egoschema_subset"]]
    return [table("GENERATION", [None, None]), table("Subset", public)]


def _mlvu(question: str, options: Sequence[str]) -> Replica:
    listed = "".join(f"\n({letter}) {option}" for letter, option in zip(LETTERS, options))
    rows = [
        {
            "video_name": f"{i % 2}_film.mp4",
            "duration": 1.5,
            "question": f"{question}{listed}\n",
            "candidates": list(options),
            "answer": letter,
            "task_type": kind,
        }
        for i, (kind, letter) in enumerate(zip(MLVU_TYPES, ANSWERS["bimba_mlvu_dev"]))
    ]
    films = {f"{i}_film.mp4": i for i in range(2)}
    return Replica("sy1998/MLVU_dev", "sy1998/mlvu_dev", "mlvu", "test", rows, "mlvu", films)


def _longvideobench(ask: Ask) -> Replica:
    rows = []
    for i, (number, letter) in enumerate(zip((2, 3, 5), ANSWERS["bimba_longvideobench_val_v"])):
        question, options = ask(number)
        columns = [*options, *["N/A"] * (len(LETTERS) - number)]
        rows.append(
            {
                "video_id": f"film{i % 2}",
                "question": question,
                "question_wo_referring_query": question,
                "correct_choice": LETTERS.index(letter),
                "topic_category": "NP-News-Programs",
                "question_category": "T3E",
                "level": "L2-Relation",
                "id": f"film{i % 2}_{i}",
                "video_path": f"film{i % 2}.mp4",
                "subtitle_path": f"film{i % 2}_en.json",
                "duration_group": 15,
                "starting_timestamp_for_subtitles": 0.0,
                "duration": 1.5,
                "view_count": 1,
                **{f"option{j}": option for j, option in enumerate(columns)},
            }
        )
    films = {f"videos/film{i}.mp4": i for i in range(2)}
    names = ("longvideobench/LongVideoBench", "longvideobench/long_video_bench")
    return Replica(*names, "default", "validation", rows, "datasets/longvideobench", films)


def _nextqa(question: str, options: Sequence[str]) -> Replica:
    first = 4010069381
    rows = [
        {
            "video": first + i % 2,
            "frame_count": 12,
            "width": 64,
            "height": 48,
            "question": question,
            "answer": LETTERS.index(letter),
            "qid": i,
            "type": "CW",
            **{f"a{j}": option for j, option in enumerate(options)},
        }
        for i, letter in enumerate(ANSWERS["bimba_nextqa_mc_test"])
    ]
    films = {f"NExTVideo/{first + i}.mp4": i for i in range(2)}
    return Replica("lmms-eval/NExTQA", "lmms-eval/n_ex_tqa", "MC", "test", rows, "nextqa", films)


def _perceptiontest(question: str, options: Sequence[str]) -> Replica:
    rows = [
        {
            "video_name": f"video_{i}",
            "question": question,
            "question_id": str(i),
            "options": list(options),
            "answer_id": str(LETTERS.index(letter)),
            "area": "physics",
            "reasoning": "descriptive",
            "tag": ["motion"],
        }
        for i, letter in enumerate(ANSWERS["bimba_perceptiontest_val_mc"])
    ]
    films = {f"videos/video_{i}.mp4": i for i in range(2)}
    names = ("lmms-eval/PerceptionTest_Val", "lmms-eval/perception_test_val")
    return Replica(*names, "mc_question_val", "validation", rows, "perceptiontest_val", films)
