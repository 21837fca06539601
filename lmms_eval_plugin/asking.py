"""From a request of the harness to a question of the engine, and to the key that its answer is kept under."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmms_eval.protocol import ChatMessages

from bimba.data.prompt import LETTERS
from bimba.inference import Question, VideoQA
from bimba.inference.answer import letter_token_ids
from bimba.inference.journal import journal_key
from bimba.inference.schedule import listing
from bimba.types import BimbaError, SequenceTooLongError, is_count, is_number

if TYPE_CHECKING:
    from lmms_eval.api.instance import Instance

MAX_NEW_TOKENS = 16  # for tasks that do not say; answers are letters or short phrases


def refuse_arguments(unknown: Iterable[str], known: Sequence[str]) -> None:
    """Raises a BimbaError if there are ``--model_args`` that nobody reads."""
    lines = []
    for name in unknown:
        similar = difflib.get_close_matches(name, known, n=1)
        lines.append(f"--model_args {name}=: nobody reads it{f'; did you mean {similar[0]}=?' if similar else '.'}")
    if lines:
        raise BimbaError(f"{' '.join(lines)} Expected {', '.join(known)}.")


def check_arguments(counts: Mapping[str, Any], sizes: Mapping[str, Any], switches: Mapping[str, Any]) -> None:
    """Raises a BimbaError for values of ``--model_args`` that the harness has read as something else than is meant.

    To it ``true`` and ``false`` are the only switches: ``no`` is a word, which would count as true.

    Args:
        counts: names and values of whole numbers from 1; None: not given.
        sizes: of numbers from 0.
        switches: of what is on or off.
    """
    for name, value in counts.items():
        if value is not None and not is_count(value):
            raise BimbaError(f"{name} is {value!r}; expected a whole number of at least 1, or to be left out.")
    for name, value in sizes.items():
        if not is_number(value) or value < 0:
            raise BimbaError(f"{name} is {value!r}; expected a number of at least 0.")
    for name, value in switches.items():
        if value not in (True, False):
            raise BimbaError(f"{name} is {value!r}; expected true or false.")


@dataclass(frozen=True)
class Request:
    """A request of the harness: a question, where the answer ends, and which of the run's questions it is."""

    question: Question
    stops: list[str]
    asked: dict[str, Any]

    @property
    def key(self) -> str:
        return journal_key(self.asked)

    @property
    def name(self) -> str:
        return f"{self.asked['task']} document {self.asked['doc_id']}"


def read_question(
    instance: Instance, messages: ChatMessages, doc: Any, num_frames: int | None, default: int
) -> tuple[Question, list[str]]:
    """The question, and the strings at which its answer ends.

    Args:
        num_frames: of the video; None: as the task says, or else ``default``.

    Raises:
        BimbaError: what is not one question about one video, or a letter is to be chosen and from which, nobody says.
    """
    _, _, gen_kwargs, doc_id, task, _ = instance.args
    where = f"Task {task}, document {doc_id}"
    images, videos, audios = messages.extract_media()
    roles = [message.role for message in messages.messages]
    if roles != ["user"] or images or audios or len(videos) != 1 or not isinstance(videos[0], str):
        raise BimbaError(
            f"{where}: received turns {roles} with {len(images)} images, {len(videos)} videos and {len(audios)} "
            "sounds; bimba takes one user turn with one video file. Choose another task."
        )
    prompt = "\n".join(content.text for content in messages.messages[0].content if content.type == "text")
    max_new_tokens, stops, sampling = generation_options(gen_kwargs)
    num_frames = int(num_frames or gen_kwargs.get("num_frames") or default)
    if not gen_kwargs.get("choose"):
        return Question(videos[0], prompt, num_frames, max_new_tokens, sampling), stops
    if sampling.get("do_sample"):
        raise BimbaError(f"{where}: received choose and {sampling}; a letter is chosen by its probability, not drawn.")
    return Question(videos[0], prompt, num_frames, num_options=_num_options(instance, doc, where)), []


def _num_options(instance: Instance, doc: Any, where: str) -> int:
    """How many options a document has, as the task's ``doc_to_choice`` says."""
    # The harness hands over the task as the owner of this method, and in no other way.
    task: Any = getattr(instance.args[1], "__self__", None)
    if getattr(getattr(task, "config", None), "doc_to_choice", None) is None:
        raise BimbaError(
            f"{where}: its generation_kwargs say choose, but it has no doc_to_choice; give the task one that returns "
            "the options of a document."
        )
    return len(task.doc_to_choice(doc))


def generation_options(gen_kwargs: dict[str, Any]) -> tuple[int, list[str], dict[str, Any]]:
    """A task's ``generation_kwargs`` as what ``EncodedVideo.generate`` takes; the argument is left as it is.

    Returns:
        ``max_new_tokens``, the stop strings (``until``, which transformers does not know), and the sampling options.
        Without ``do_sample: true`` or a temperature above 0 decoding is greedy.
    """
    options = deepcopy(gen_kwargs)  # the harness keys its response cache on this very dict
    for ours in ("num_frames", "choose"):  # how a task says how many frames its videos are read with, and how it asks
        options.pop(ours, None)
    until = options.pop("until", None) or []
    max_new_tokens = int(options.pop("max_new_tokens", MAX_NEW_TOKENS))
    temperature = options.pop("temperature", None)
    sample = bool(options.pop("do_sample", bool(temperature))) and temperature != 0
    if sample:
        sampling = {**options, "do_sample": True, **({} if temperature is None else {"temperature": temperature})}
    else:  # transformers warns about sampling options that greedy decoding does not read
        sampling = {key: value for key, value in options.items() if key not in ("top_p", "top_k")}
    return max_new_tokens, [until] if isinstance(until, str) else list(until), sampling


def check_choices(requests: Sequence[Request], engine: VideoQA) -> None:
    """Raises ``BimbaError`` for questions whose options are too few or too many to choose a letter from."""
    numbers = {request.name: request.question.num_options for request in requests}
    chosen = {name: number for name, number in numbers.items() if number is not None}
    wrong = [f"{name} ({number})" for name, number in chosen.items() if not 2 <= number <= len(LETTERS)]
    if wrong:
        raise BimbaError(
            f"{len(wrong)} questions have too few or too many options to choose from: {listing(wrong)}. Expected 2 "
            f"to {len(LETTERS)} of each. Nothing was evaluated."
        )
    if chosen:
        letter_token_ids(engine.processor.tokenizer, max(chosen.values()))  # or not after the first video


def check_lengths(requests: Sequence[Request], engine: VideoQA) -> None:
    """Raises ``SequenceTooLongError`` for questions that are longer than the model takes."""
    too_long = []
    for request in requests:
        question = request.question
        try:
            engine.check_prompt(question.prompt, question.num_frames, question.max_new_tokens)
        except SequenceTooLongError as error:
            too_long.append((request.name, error))
    if too_long:
        names = listing([name for name, _ in too_long])
        raise SequenceTooLongError(f"{len(too_long)} questions are too long ({names}). The first: {too_long[0][1]}")
