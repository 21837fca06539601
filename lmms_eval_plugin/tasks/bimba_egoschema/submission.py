"""EgoSchema's answers as the file that Kaggle takes: ``q_uid,answer`` with answers 0 to 4. Nothing is sent.

The published 71.14 is the score of such a file in the competition ``egoschema-public``: only there the right answers of
the full set are known.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bimba.data.prompt import LETTERS
from bimba.inference.answer import answer_letter
from bimba.report.files import write_json
from bimba.types import BimbaError

NO_ANSWER = -1  # no letter could be read from the answer; no option has this number, so it counts as wrong
FULL_SET = 5031
NUM_OPTIONS = 5
COLUMNS = ("q_uid", "answer")


def answer_index(answer: str) -> int:
    """0 to 4 for an answer of A to E, read strictly; ``NO_ANSWER`` for anything else."""
    letter = answer_letter(answer)
    return LETTERS.index(letter) if letter in tuple(LETTERS[:NUM_OPTIONS]) else NO_ANSWER


def write_submission(path: Path, predictions: Mapping[str, int]) -> None:
    """Writes the CSV at ``path`` and the same as JSON beside it, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        rows.writerows(predictions.items())
    os.replace(partial, path)
    write_json(path.with_suffix(".json"), predictions)


def read_predictions(path: Path) -> dict[str, int]:
    """Question -> answer from what an evaluation left behind; answers are read strictly.

    Args:
        path: the harness's ``*_samples_bimba_egoschema.jsonl``, ``samples/bimba_egoschema.json`` of ``evaluate.py``, or
            the samples of the harness's own task ``egoschema``.

    Raises:
        BimbaError: no such file, it is none of these, or a question has two answers.
    """
    if not path.is_file():
        raise BimbaError(f"{path} is not a file; give the samples of an EgoSchema evaluation (.json or .jsonl).")
    try:
        text = path.read_text(encoding="utf-8")
        rows = (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)["samples"]
        )
        pairs = [_answer(row) for row in rows]
    except OSError as error:
        raise BimbaError(f"{path} cannot be read ({error.strerror or error}).") from error
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:  # ValueError: no text or JSON, too
        raise BimbaError(
            f"{path} does not hold EgoSchema answers ({type(error).__name__}: {error}); give the samples that "
            "`lmms-eval --log_samples` (.jsonl) or `bimba evaluate` (.json) wrote for bimba_egoschema."
        ) from error
    predictions = dict(pairs)
    if not predictions or len(predictions) != len(pairs):
        raise BimbaError(
            f"{path} has {len(pairs)} answers to {len(predictions)} questions; expected one each. Give the samples of "
            "one evaluation."
        )
    return predictions


def _answer(row: dict[str, Any]) -> tuple[str, int]:
    """One question: the harness writes its answer as a text, ``evaluate.py`` as a list of one."""
    (uid,) = row["submission"]
    answer = row["filtered_resps"]
    return uid, answer_index((answer if isinstance(answer, str) else answer[0]).strip())
