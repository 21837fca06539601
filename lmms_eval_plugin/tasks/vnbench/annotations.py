"""The published annotation of VNBench, whatever form it is in, as plain questions.

Where things go: the folder ``$BIMBA_VNBENCH_ROOT``, by default ``$HF_HOME/vnbench``, holds

* the annotation: ``VNBench-main-4try.json`` of the data set ``videoniah/VNBench``, 5,400 rows of
  ``{video, question, options, gt, type, try}``. The file of the original implementation serves as well, with rows of
  ``{video, question, candidates ["A. ..."], answer, question_type, id}``; a file of another name is found if it is the
  only ``*.json`` there.
* the videos, as the archive of the VideoNIAH project (see its README for the link) unpacks them: a file that the
  annotation calls ``/VNBench_new/x.mp4`` is looked for as ``VNBench_new/x.mp4``, ``videos/x.mp4`` and ``x.mp4``.

The annotation is for academic use only, so it is not shipped, and nothing is downloaded.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from bimba.data.prompt import LETTERS, bare_options
from bimba.types import BimbaError

ROOT_VARIABLE = "BIMBA_VNBENCH_ROOT"
ANNOTATION = "VNBench-main-4try.json"
TRIES = 4
TYPES = (
    *("ret_edit1", "ret_insert1", "ret_insert2"),
    *("ord_edit1", "ord_insert1", "ord_insert2"),
    *("cnt_edit1", "cnt_edit2", "cnt_insert1"),
)


def find_root() -> Path:
    """The folder of annotation and videos.

    Raises:
        BimbaError: neither variable is set, or the folder does not exist.
    """
    named = os.environ.get(ROOT_VARIABLE)
    home = os.environ.get("HF_HOME")
    if not named and not home:
        raise BimbaError(f"Neither {ROOT_VARIABLE} nor HF_HOME is set; set the first to VNBench's folder.")
    root = Path(named) if named else Path(str(home)) / "vnbench"
    if not root.is_dir():
        raise BimbaError(
            f"No VNBench: {root} is not a folder. Put {ANNOTATION} and the unpacked videos there, or set "
            f"{ROOT_VARIABLE} to the folder that has them. `bimba prepare vnbench` helps."
        )
    return root.absolute()


def find_annotation(root: Path) -> Path:
    """The annotation file in ``root``.

    Raises:
        BimbaError: there is none, or several and none has the published name.
    """
    if (root / ANNOTATION).is_file():
        return root / ANNOTATION
    files = sorted(root.glob("*.json"))
    if len(files) != 1:
        raise BimbaError(
            f"{root} has no {ANNOTATION} and {len(files)} other .json files; expected the published file, or exactly "
            "one of another name. It is in the data set videoniah/VNBench; `bimba prepare vnbench` helps."
        )
    return files[0]


def load_questions(root: Path) -> list[dict[str, Any]]:
    """All tries of all questions, in the order of the file.

    Returns:
        rows of ``id``, ``video`` (absolute path; that of the first place it is looked for if it is nowhere),
        ``question``, ``options`` (bare texts), ``answer`` (letter), ``type`` (one of ``TYPES``), ``group`` (number of
        the pair of video and question, of which the tries are the rows).

    Raises:
        BimbaError: no annotation, or one with rows that are not VNBench's.
    """
    path = find_annotation(root)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BimbaError(f"{path} cannot be read ({error.strerror or error}).") from error
    except ValueError as error:  # no JSON, or not even text
        raise BimbaError(f"{path} is not JSON ({error}); download it again.") from error
    if not isinstance(rows, list) or not rows:
        raise BimbaError(f"{path} holds a {type(rows).__name__} without rows; expected VNBench's list of questions.")
    videos: dict[str, str] = {}
    groups: dict[tuple[str, str], int] = {}
    questions = []
    for number, row in enumerate(rows):
        try:
            question = _normalise(row, number)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BimbaError(
                f"{path}, row {number}: not a question of VNBench ({type(error).__name__}: {error}); received "
                f"{str(row)[:200]}."
            ) from error
        name = question["video"]
        if name not in videos:
            videos[name] = find_video(root, name)
        group = groups.setdefault((name, question["question"]), len(groups))
        questions.append({**question, "video": videos[name], "group": group})
    repeated = [key for key, count in Counter(question["id"] for question in questions).items() if count > 1]
    if repeated:
        raise BimbaError(f"{path} has {len(repeated)} ids twice, such as {repeated[0]}; expected one row for each try.")
    return questions


def find_video(root: Path, name: str) -> str:
    """Absolute path of a video of the annotation; of the first place looked at, if it is in none."""
    inside = name.lstrip("/")
    places = [root / inside, root / "videos" / Path(inside).name, root / Path(inside).name]
    return str(next((place for place in places if place.is_file()), places[0]))


def _normalise(row: dict[str, Any], number: int) -> dict[str, Any]:
    if "candidates" in row:  # the original implementation's file
        options = bare_options(row["candidates"])
        answer, kind, key = row["answer"], row["question_type"], row["id"]
    else:
        options = row["options"]
        answer = LETTERS[options.index(row["gt"])]
        kind, key = row["type"], number
    if not 2 <= len(options) <= len(LETTERS):
        raise ValueError(f"{len(options)} options, expected 2 to {len(LETTERS)}")
    if len(answer) != 1 or answer not in LETTERS[: len(options)]:
        raise ValueError(f"the answer {answer!r} is none of the {len(options)} options")
    return {
        "id": str(key),
        "video": row["video"],
        "question": row["question"],
        "options": options,
        "answer": answer,
        "type": _type(row["video"], kind),
    }


def _type(video: str, kind: str) -> str:
    """The published files confuse ret_insert1 and ret_insert2; the names of the videos have them right."""
    named = [known for known in TYPES if known in Path(video).name]
    if len(named) == 1:
        return named[0]
    if kind not in TYPES:
        raise ValueError(f"the type {kind!r} is none of {', '.join(TYPES)}")
    return kind
