"""The needle tasks: questions from a local folder, the training prompt, strict scoring by letter.

The folder is ``$BIMBA_NEEDLE_ROOT``, by default ``data/needle`` under the current folder, as ``bimba.data.needle``
writes it: ``test/annotations.json`` and ``test/videos/*.mp4``. The variable may also name the ``test`` folder itself.
Nothing is downloaded.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from lmms_eval.api.task import ConfigurableMessagesTask

from bimba.data.prompt import LETTERS, multiple_choice
from bimba.inference.answer import answer_letter
from bimba.types import BimbaError

ROOT_VARIABLE = "BIMBA_NEEDLE_ROOT"
DEFAULT_ROOT = "data/needle"
SPLIT = "test"
COLUMNS = ("id", "task", "question", "options", "answer")


class NeedleTask(ConfigurableMessagesTask):
    """A task whose ``dataset_name`` is the kind of needle question; it builds chat requests.

    A class, because the harness's own loader cannot take a folder from the environment, and retries every error five
    times before it hides it in a RetryError.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Reads the questions; the harness calls this where it would download a data set."""
        self.dataset = DatasetDict({SPLIT: Dataset.from_list(load_questions(self.config.dataset_name))})
        self.dataset_no_image = self.dataset


def find_folder() -> Path:
    """The folder that holds ``annotations.json`` and ``videos/``.

    Raises:
        BimbaError: there is none.
    """
    root = Path(os.environ.get(ROOT_VARIABLE, DEFAULT_ROOT))
    for folder in (root, root / SPLIT):
        if (folder / "annotations.json").is_file():
            return folder
    raise BimbaError(
        f"No needle test data: neither {root / 'annotations.json'} nor {root / SPLIT / 'annotations.json'} exists. "
        f"`bimba train` generates it, or set {ROOT_VARIABLE} to the folder that has it."
    )


def load_questions(task: str) -> list[dict[str, Any]]:
    """The four-option questions of one task, with the absolute path of each one's video.

    ``num_needles`` is how many digits the video shows and ``needle_frames`` for how many frames the shortest of them is
    visible, both None where the annotations do not say. The harness keeps them with the answers.

    Raises:
        BimbaError: no data, or no question of this task.
    """
    folder = find_folder()
    path = folder / "annotations.json"
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))
        questions = [
            {
                **{column: sample[column] for column in COLUMNS},
                **needle_columns(sample),
                "video": str((folder / sample["video"]).resolve()),
            }
            for sample in samples
            if sample["task"] == task
        ]
    except (ValueError, KeyError, TypeError) as error:  # ValueError: no text or JSON, too
        raise BimbaError(
            f"{path} is not a needle annotation file ({type(error).__name__}: {error}); delete {folder} and "
            "generate it again with `bimba train`."
        ) from error
    if not questions:
        raise BimbaError(f"{path} has no {task} question; generate the data again with all three tasks.")
    return questions


def needle_columns(sample: dict[str, Any]) -> dict[str, int | None]:
    """What an annotation says of the digits in its video, as numbers to sort answers by."""
    lengths = [needle["length"] for needle in sample.get("needles", [])]
    return {"num_needles": len(lengths) or None, "needle_frames": min(lengths, default=None)}


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    return [doc["video"]]


def doc_to_text(doc: dict[str, Any]) -> str:
    """The bytes that training used."""
    return multiple_choice(doc["question"], doc["options"])


def doc_to_choice(doc: dict[str, Any]) -> list[str]:
    return list(LETTERS[: len(doc["options"])])


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    return {"accuracy": float(answer_letter(results[0]) == doc["answer"].upper())}
