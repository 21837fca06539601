"""VNBench: two scores of the same answers. See ``annotations.py`` for where the data goes.

``vnbench_per_try`` is the share of right answers: the published 77.88. ``vnbench_all_tries`` is the benchmark's own
score: a question counts when all four tries are right, and the types count alike. Each is also given by type.
"""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict
from lmms_eval.api.task import ConfigurableMessagesTask
from loguru import logger

from lmms_eval_plugin.tasks.published import Asked, lettered, readings
from lmms_eval_plugin.tasks.vnbench.annotations import TRIES, find_root, load_questions

SPLIT = "test"


class VNBenchTask(ConfigurableMessagesTask):
    """A task that reads a local annotation and builds chat requests.

    A class, because the harness's own loader cannot take a folder from the environment, and retries every error five
    times before it hides it in a RetryError.
    """

    def __init__(self, config: dict[str, Any]):
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None) -> None:
        """Reads the questions; the harness calls this where it would download a data set."""
        self.dataset = DatasetDict({SPLIT: Dataset.from_list(load_questions(find_root()))})
        self.dataset_no_image = self.dataset


def doc_to_visual(doc: dict[str, Any]) -> list[str]:
    return [doc["video"]]


def asked(doc: dict[str, Any]) -> Asked:
    """``load_questions`` has seen to it that the answer is the letter of an option."""
    return Asked(doc["question"], lettered(doc["options"]), doc["answer"], identity=doc["id"])


def doc_to_text(doc: dict[str, Any]) -> str:
    return asked(doc).prompt


def doc_to_choice(doc: dict[str, Any]) -> list[str]:
    return asked(doc).letters


def process_results(doc: dict[str, Any], results: list[str]) -> dict[str, Any]:
    read = readings(results[0], asked(doc))
    right = read["strict_accuracy"]
    attempt = {"group": doc["group"], "type": doc["type"], "score": right}
    return {
        "vnbench_per_try": right,
        "vnbench_all_tries": attempt,
        "vnbench_per_try_lenient": read["lenient_accuracy"],
        "no_letter": read["no_letter"],
        "outside_options": read["outside_options"],
        f"vnbench_per_try_{doc['type']}": right,
        f"vnbench_all_tries_{doc['type']}": attempt,
    }


def aggregate_all_tries(results: list[dict[str, Any]]) -> float:
    """Mean over types of the share of questions with four right answers."""
    tries: dict[str, dict[int, list[float]]] = {}
    for result in results:
        tries.setdefault(result["type"], {}).setdefault(result["group"], []).append(result["score"])
    counts = [len(scores) for groups in tries.values() for scores in groups.values()]
    if incomplete := sum(count != TRIES for count in counts):
        logger.warning(
            f"VNBench: {incomplete} of {len(counts)} questions were not asked {TRIES} times (a limit, or not the file "
            "of all tries); they count as wrong in vnbench_all_tries."
        )
    of_types = [
        sum(len(scores) == TRIES == sum(scores) for scores in groups.values()) / len(groups)
        for groups in tries.values()
    ]
    return sum(of_types) / len(of_types)
