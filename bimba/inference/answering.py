"""[6] What can be asked of any video in memory, in words and with options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from bimba.data.prompt import bare_options, check_options, multiple_choice, open_ended
from bimba.inference.answer import Choice, Generation
from bimba.inference.conversation import Conversation, ReadVideo


class Answering(ABC):
    """A video that :meth:`VideoQA.encode` read."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Memory that what is kept of it takes."""

    @abstractmethod
    def generate(self, prompt: str, max_new_tokens: int | None = None, **sampling: Any) -> Generation:
        """The model's words after a prompt, which stands after the video as it is.

        Args:
            max_new_tokens: as for :meth:`ask`.
            sampling: handed to transformers' ``generate`` (``do_sample``, ``temperature``, ``num_beams``, ...). Without
                it the answer is greedy; a repetition penalty of the checkpoint's ``generation_config`` always holds.

        Raises:
            BimbaError: an empty prompt.
            SequenceTooLongError: prompt and answer are longer than the model takes.
        """

    @abstractmethod
    def generate_batch(
        self, prompts: Sequence[str], max_new_tokens: int | None = None, **settings: Any
    ) -> list[Generation]:
        """What :meth:`generate` answers to each prompt, greedily, from one pass over all of them.

        The prompts are padded on the left, between the video and their first words. In float32 the tokens are those of
        one prompt at a time. In 16 bits rounding depends on the batch, so a close call may go the other way. Each
        prompt takes a copy of the video's keys and values.

        Args:
            max_new_tokens: of each answer, as for :meth:`ask`.
            settings: as for :meth:`generate`, of those that :func:`batchable` takes.

        Raises:
            BimbaError: an empty prompt, or settings that a batch cannot keep.
            SequenceTooLongError: a prompt and its answer are longer than the model takes.
        """

    @abstractmethod
    def choose_letter(self, prompt: str, num_options: int) -> Choice:
        """The likeliest first word of the answer to a prompt, among the letters of so many options.

        Args:
            prompt: question and options in whatever words; it stands after the video as it is.

        Raises:
            BimbaError: an empty prompt, or too few or too many options.
            SequenceTooLongError: the prompt is longer than the model takes.
        """

    @abstractmethod
    def asked(self, prompt: str) -> ReadVideo:
        """The video as the language model reads it when this is asked about it first.

        Raises:
            BimbaError: an empty prompt.
            SequenceTooLongError: the prompt is longer than the model takes.
        """

    def chat(self) -> Conversation:
        """A conversation about the video, in which each answer knows what was said before."""
        return Conversation(self.asked)

    def ask(self, question: str, max_new_tokens: int | None = None, *, short: bool = False) -> str:
        """The answer in words, greedily decoded.

        Args:
            max_new_tokens: None is 256, or as many as the model's limit leaves room for.
            short: asks for a single word or phrase, with the words that the models were trained with.

        Raises:
            BimbaError: an empty question.
            SequenceTooLongError: prompt and answer are longer than the model takes.
        """
        return self.generate(open_ended(question) if short else question, max_new_tokens).text

    def choose(self, question: str, options: Sequence[str]) -> Choice:
        """The likeliest of 2 to 26 options, by the probability of its letter as the first word of the answer.

        Args:
            options: option texts, with or without their letters ("A. red" or "red").

        Raises:
            BimbaError: an empty question, too few or too many options, an empty one, or two that are the same.
            SequenceTooLongError: the prompt is longer than the model takes.
        """
        check_options(options)
        prompt = multiple_choice(question, bare_options(options))
        return self.choose_letter(prompt, len(options))
