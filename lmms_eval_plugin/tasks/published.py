"""What the tasks of the published numbers share: the harness's own module of a benchmark, and strict scoring.

The tasks take data, video lookup and scoring from the harness, and the prompt, the number of frames and the generation
settings from the original (``_published_defaults``). Both scores are reported: ``strict_accuracy``, by which the
published numbers were made, and the harness's own metric, which forgives more in reading an answer.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType

from bimba.inference.answer import answer_letter
from bimba.types import BimbaError


def stock_utils(benchmark: str) -> ModuleType:
    """``lmms_eval.tasks.<benchmark>.utils``, which fixes the folder of the videos when it is imported.

    Raises:
        BimbaError: HF_HOME is not set or not absolute. Half of those modules would then look for videos under the
            current folder, in a folder named "~", or stop with a KeyError.
    """
    home = os.environ.get("HF_HOME", "")
    if not os.path.isabs(home):
        state = f"is {home!r}, which is not absolute" if home else "is not set"
        raise BimbaError(
            f"HF_HOME {state}; the harness looks for the videos of {benchmark} there. Set it to the absolute path of "
            "the folder that holds them, for example `export HF_HOME=$HOME/.cache/huggingface`."
        )
    return importlib.import_module(f"lmms_eval.tasks.{benchmark}.utils")


def strict(answer: str, letter: str) -> float:
    """1.0 if the first word of ``answer`` is the letter and nothing else; 0.0 if not."""
    return float(answer_letter(answer) == letter)
