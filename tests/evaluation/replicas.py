"""Miniature replicas of the seven benchmarks: the true columns, archives and folders, tiny films, golden questions.

Every question is one that the original implementation was asked, so that its golden prompt is the expected one.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tiny_checkpoint import write_video

PROMPTS = json.loads((Path(__file__).parents[1] / "golden" / "text" / "prompts.json").read_text())
GOLDEN = PROMPTS["get_prompt"]
TIME_INSTRUCTION_ENDS = "\nSelect the best answer"  # one golden was asked with it; the published numbers were not
MLVU_TYPES = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")
VNBENCH_TYPES = ("ret_insert1", "cnt_edit2")
TRIES = 4
SUITE = {  # task -> the letters that are right, in the order of the documents
    "bimba_egoschema": [None, None],
    "vnbench": [*"ABCD", *"BBCA"],
    "bimba_videomme": [*"ABC"],
    "bimba_mlvu_dev": [*"ABCDABC"],
    "bimba_longvideobench_val_v": [*"ACE"],
    "bimba_nextqa_mc_test": [*"AEB"],
    "bimba_perceptiontest_val_mc": [*"CA"],
}
STOCK = ("videomme", "mlvu_dev", "longvideobench_val_v", "nextqa_mc_test", "perceptiontest_val_mc", "egoschema_subset")


@dataclass(frozen=True)
class Run:
    """What ``lmms-eval`` left behind: HF_HOME with everything fetched and unpacked, results, and who was asked."""

    home: Path
    output: Path
    log: str
    outside: list[str]


def golden(number: int) -> tuple[str, list[str], str]:
    """Question, options with letters, and the words of the published prompt, for a number of options.

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
    return case["sample"]["question"], case["sample"]["candidates"], words


def bare(options: list[str]) -> list[str]:
    return [option[len("A. ") :] for option in options]


def write_hub(root: Path) -> None:
    """The six data sets of the hub, as repositories ``owner/name`` under ``root``."""
    _videomme(root / "lmms-eval/Video-MME")
    _egoschema(root / "lmms-eval/egoschema")
    _mlvu(root / "sy1998/MLVU_dev")
    _longvideobench(root / "longvideobench/LongVideoBench")
    _nextqa(root / "lmms-eval/NExTQA")
    _perceptiontest(root / "lmms-eval/PerceptionTest_Val")


def write_vnbench(root: Path) -> None:
    """VNBench's annotation and videos as published: neither is in the harness or on the hub as a data set."""
    question, options, _ = golden(4)
    answers, rows = iter(SUITE["vnbench"]), []
    for number, kind in enumerate(VNBENCH_TYPES):
        name = f"VNBench_new/{kind}_{number}.mp4"
        write_video(root / name, seed=number)
        for attempt in range(TRIES):
            texts = bare(options)
            right = "ABCD".index(next(answers))
            rows.append(
                {
                    "video": f"/{name}",
                    "question": question,
                    "options": texts,
                    "needle_time": [1.0],
                    "gt": texts[right],
                    "gt_option": right,
                    "length": 1.5,
                    # as published: the two are confused
                    "type": {"ret_insert1": "ret_insert2"}.get(kind, kind),
                    "try": attempt,
                }
            )
    (root / "VNBench-main-4try.json").write_text(json.dumps(rows))


def _videomme(folder: Path) -> None:
    question, options, _ = golden(4)
    rows = [
        {
            "video_id": f"{number:03d}",
            "duration": duration,
            "domain": "Knowledge",
            "sub_category": "Astronomy",
            "url": "",
            "videoID": f"film{number % 2}",
            "question_id": f"{number:03d}-1",
            "task_type": "Counting Problem",
            "question": question,
            "options": options,
            "answer": letter,
        }
        for number, (duration, letter) in enumerate(zip(("short", "medium", "long"), SUITE["bimba_videomme"]))
    ]
    _parquet(folder / "videomme/test-00000-of-00001.parquet", rows)
    _card(folder, {"videomme": {"test": "videomme/test-*"}})
    _zip(folder / "videos_chunked_01.zip", {f"data/film{i}.mp4": i for i in range(2)})
    with zipfile.ZipFile(folder / "subtitle.zip", "w") as archive:
        archive.writestr("subtitle/film0.srt", "1\n00:00:00,000 --> 00:00:01,000\nnothing\n")


def _egoschema(folder: Path) -> None:
    question, options, _ = golden(5)
    rows = [
        {"question_idx": str(i), "question": question, "video_idx": f"uid-{i}", "option": options, "answer": None}
        for i in range(2)
    ]
    schema = pa.schema(
        [(name, pa.string()) for name in ("question_idx", "question", "video_idx")]
        + [("option", pa.list_(pa.string())), ("answer", pa.string())]
    )
    _parquet(folder / "GENERATION/test-00000-of-00001.parquet", rows, schema)
    subset = [{**row, "answer": answer} for row, answer in zip(rows, ("4", "0"))]
    _parquet(folder / "Subset/test-00000-of-00001.parquet", subset, schema)
    _card(folder, {name: {"test": f"{name}/test-*"} for name in ("GENERATION", "Subset")})
    _zip(folder / "videos_chunked_01.zip", {f"videos/uid-{i}.mp4": i for i in range(2)})


def _mlvu(folder: Path) -> None:
    question, options, _ = golden(4)
    texts = bare(options)
    listed = "".join(f"\n({letter}) {text}" for letter, text in zip("ABCD", texts))
    rows = [
        {
            "video_name": f"{i % 2}_film.mp4",
            "duration": 1.5,
            "question": f"{question}{listed}\n",
            "candidates": texts,
            "answer": letter,
            "task_type": kind,
        }
        for i, (kind, letter) in enumerate(zip(MLVU_TYPES, SUITE["bimba_mlvu_dev"]))
    ]
    _parquet(folder / "mlvu/test-00000-of-00001.parquet", rows)
    _card(folder, {"mlvu": {"test": "mlvu/test-*"}})
    _zip(folder / "video_part_1.zip", {f"{i}_film.mp4": i for i in range(2)})


def _longvideobench(folder: Path) -> None:
    rows = []
    for i, (number, letter) in enumerate(zip((2, 3, 5), SUITE["bimba_longvideobench_val_v"])):
        question, options, _ = golden(number)
        texts = [*bare(options), *["N/A"] * (5 - number)]
        rows.append(
            {
                "video_id": f"film{i % 2}",
                "question": question,
                "question_wo_referring_query": question,
                "correct_choice": "ABCDE".index(letter),
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
                **{f"option{j}": text for j, text in enumerate(texts)},
            }
        )
    _parquet(folder / "validation-00000-of-00001.parquet", rows)
    _parquet(folder / "test-00000-of-00001.parquet", rows)
    (folder / "lvb_val.json").write_text(json.dumps(rows))
    (folder / "README.md").write_text("# LongVideoBench\n")  # without configs, as there
    films = folder.parent / "films"
    archive = folder.parent / "videos.tar"
    with tarfile.open(archive, "w") as tar:
        for i in range(2):
            tar.add(write_video(films / f"film{i}.mp4", seed=i), f"videos/film{i}.mp4")
    content = archive.read_bytes()
    for part, begin in (("aa", 0), ("ab", len(content) // 2)):
        end = len(content) if begin else len(content) // 2
        (folder / f"videos.tar.part.{part}").write_bytes(content[begin:end])
    archive.unlink()


def _nextqa(folder: Path) -> None:
    question, options, _ = golden(5)
    rows = [
        {
            "video": 4010069381 + i % 2,
            "frame_count": 12,
            "width": 64,
            "height": 48,
            "question": question,
            "answer": "ABCDE".index(letter),
            "qid": i,
            "type": "CW",
            **{f"a{j}": text for j, text in enumerate(bare(options))},
        }
        for i, letter in enumerate(SUITE["bimba_nextqa_mc_test"])
    ]
    _parquet(folder / "MC/test-00000-of-00001.parquet", rows)
    _card(folder, {"MC": {"test": "MC/test-*"}})
    _zip(folder / "videos.zip", {f"NExTVideo/{4010069381 + i}.mp4": i for i in range(2)})


def _perceptiontest(folder: Path) -> None:
    question, options, _ = golden(3)
    rows = [
        {
            "video_name": f"video_{i}",
            "question": question,
            "question_id": str(i),
            "options": bare(options),
            "answer_id": str("ABC".index(letter)),
            "area": "physics",
            "reasoning": "descriptive",
            "tag": ["motion"],
        }
        for i, letter in enumerate(SUITE["bimba_perceptiontest_val_mc"])
    ]
    _parquet(folder / "mc_question_val/validation-00000-of-00001.parquet", rows)
    _card(folder, {"mc_question_val": {"validation": "mc_question_val/validation-*"}})
    _zip(folder / "videos_chunked_01.zip", {f"videos/video_{i}.mp4": i for i in range(2)})


def _parquet(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)


def _card(folder: Path, configs: Mapping[str, Mapping[str, str]]) -> None:
    lines = ["---", "configs:"]
    for name, splits in configs.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split, path in splits.items():
            lines += [f"  - split: {split}", f"    path: {path}"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))


def _zip(path: Path, films: Mapping[str, int]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, seed in films.items():
            film = write_video(path.parent.parent / "films" / f"{seed}.mp4", seed=seed)
            archive.write(film, name)
