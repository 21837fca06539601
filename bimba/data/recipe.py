"""The two recipes for training samples: ``default``, and ``original``, which the released weights were trained with.

``original`` reproduces the published training to the token, its defects included; ``default`` is the corrected one.
All that differs is in :class:`Recipe`, whose fields docs/recipes.md shows as a table. Three things that the original
does are in neither recipe: it puts a random other sample in the place of a video that it cannot read, it cuts a
sequence that is too long, and it ends on a row without ``data_source``. Here bad and too long samples are skipped and
counted, and a row may do without ``data_source``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

from bimba.types import BimbaError


def _choice(meaning: str) -> Any:
    return field(metadata={"meaning": meaning})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a training sample is made of, in which order samples come, and how the trained model is asked."""

    time_instruction: bool = _choice(
        "The first turn begins with the length of the video and the times of its frames (index / average frame rate). "
        "Evaluation prompts do not have it, so a model trained with it is asked in words it has not seen."
    )
    instruction_repeats: bool = _choice(
        "In a second epoch a sample gets the time instruction once more on top, and so on, because the original edits "
        "its annotations in place (in the process that reads; here in all)."
    )
    medium_first: bool = _choice(
        "In a turn with one `<image>` that does not begin with it, the tag moves to the front, on a line of its own, "
        "and white space around the words goes."
    )
    drops_noise_marker: bool = _choice(
        "`QA_GT_caption_based_noisy`, a remark in one old data set, is taken out of the words of samples with a medium."
    )
    drops_leading_answer: bool = _choice("A conversation that does not begin with a question loses its first turn.")
    literal_tags: bool = _choice("`<image>` in a conversation without a medium is just words, and not an error.")
    tokenisation: Literal["parts", "whole"] = _choice(
        "`whole`: a turn and its markup are tokenised as one text. So markup that somebody typed is markup and can end "
        "the turn, an `<image>` in an answer is a medium, and line breaks at the beginning of a turn merge with the "
        "header's. `parts`: the words are tokenised for themselves, and are just words."
    )
    labels: Literal["answers", "markup"] = _choice(
        "What is learned. `answers`: what the assistant says and the `<|im_end|>` behind it. `markup`: the whole turn "
        "of the assistant, its header included, and everywhere else, system and user turns too, each `<|im_start|>`, "
        "each `<|im_end|>` and each line break that is a token of its own."
    )
    refuses_slow_videos: bool = _choice("A video of half a frame per second or less is a bad sample.")
    short_videos: Literal["error", "repeat"] = _choice(
        "A video with fewer frames than are asked for is a bad sample (`error`), or shows some of them more than once."
    )
    asks_with_newline: bool = _choice(
        "Nothing of the samples, but how the trained model is asked, which its checkpoint remembers "
        "(`newline_after_medium`): with the line break that stands behind the video in training, or, as the original's "
        "evaluation does, without it."
    )
    sample_order: Literal["shuffled", "by_length"] = _choice(
        "`by_length`: the samples of an optimizer step are dealt to its batches so that they are of about equal length."
    )
    loss_mean: Literal["tokens", "batches"] = _choice(
        "What the loss of an optimizer step is the mean of. `tokens`: all its supervised tokens, however they are "
        "dealt to batches and processes. `batches`: the means of its batches, so a token of a batch with few counts "
        "for more."
    )

    def __post_init__(self) -> None:
        if self.tokenisation == "whole" and self.labels == "answers":
            raise BimbaError(
                "A recipe with tokenisation 'whole' cannot have labels 'answers': where an answer begins is only known "
                "when turns are tokenised in parts. Use labels 'markup' or tokenisation 'parts'."
            )


RECIPES = {
    "default": Recipe(
        time_instruction=False,
        instruction_repeats=False,
        medium_first=False,
        drops_noise_marker=False,
        drops_leading_answer=False,
        literal_tags=False,
        tokenisation="parts",
        labels="answers",
        refuses_slow_videos=False,
        short_videos="error",
        asks_with_newline=True,
        sample_order="shuffled",
        loss_mean="tokens",
    ),
    "original": Recipe(
        time_instruction=True,
        instruction_repeats=True,
        medium_first=True,
        drops_noise_marker=True,
        drops_leading_answer=True,
        literal_tags=True,
        tokenisation="whole",
        labels="markup",
        refuses_slow_videos=True,
        short_videos="repeat",
        asks_with_newline=False,
        sample_order="by_length",
        loss_mean="batches",
    ),
}
DEFAULT = RECIPES["default"]


def recipe_named(name: str) -> Recipe:
    """The recipe ``data.recipe`` names.

    Raises:
        BimbaError: there is none of that name.
    """
    if name not in RECIPES:
        raise BimbaError(f"data.recipe is {name!r}; expected one of {', '.join(RECIPES)}.")
    return RECIPES[name]


def table_rows() -> list[str]:
    """One line of docs/recipes.md per field: what each recipe chooses, and what that means."""
    rows = []
    for choice in fields(Recipe):
        values = [_shown(getattr(recipe, choice.name)) for recipe in RECIPES.values()]
        meaning = choice.metadata["meaning"].replace("|", r"\|")
        rows.append(f"| `{choice.name}` | {' | '.join(values)} | {meaning} |")
    return rows


def _shown(value: bool | str) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else f"`{value}`"
