"""[6] ``ConditionedVideo``: what a model keeps of a video whose compressor reads the question (question_conditioned).

::

    video.mp4 -> frames -> vision tower -> projector | -> compressor -> language model, prefix and question -> answer
    '---------- once per video: ConditionedVideo ---'   '------------------ once per question ----------------------'

Kept are the space-time tokens, T x H x W of them: of 64 frames of the 7B model 334 MB in 16 bits, where an
``EncodedVideo`` takes 0.9 GB, keys and values included. Each question makes an ``EncodedVideo`` of them for as long as
it is being answered. What is asked about a video shares nothing else, not even the language model's pass over it: its
tokens differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from bimba.inference import encoded
from bimba.inference.answer import Choice, Generation
from bimba.inference.answering import Answering
from bimba.inference.encoded import EncodedVideo, check_batchable


class Engine(encoded.Engine, Protocol):
    """What is asked of a ``VideoQA``."""

    def prefill(self, tokens: Tensor, num_frames: int) -> EncodedVideo: ...


@dataclass
class ConditionedVideo(Answering):
    """A video before the compressor. Made by :meth:`VideoQA.encode`; not for use by two threads at once.

    Attributes:
        tokens: (T, H, W, C) its space-time tokens, which no question changes.
        num_frames: how many frames were sampled.
    """

    engine: Engine
    tokens: Tensor
    num_frames: int

    @property
    def num_bytes(self) -> int:
        """Memory that the tokens take."""
        return int(self.tokens.nbytes)

    @torch.inference_mode()
    def asked(self, prompt: str) -> EncodedVideo:
        """The video as the language model reads it when this is asked.

        Raises:
            BimbaError: an empty prompt.
            SequenceTooLongError: the prompt is longer than the model takes.
        """
        model, processor = self.engine.model, self.engine.processor
        ids = self.engine.tokenize(prompt, processor.num_video_tokens(self.num_frames))
        self.engine.check_length(len(ids), self.num_frames, 1)
        (question,) = model.questions(ids[None], [self.num_frames]) or []
        (tokens,) = model.compress(self.tokens[None], question[None])
        return self.engine.prefill(tokens, self.num_frames)

    def generate(self, prompt: str, max_new_tokens: int | None = None, **sampling: Any) -> Generation:
        """As :meth:`EncodedVideo.generate`, of the video compressed for the prompt."""
        return self.asked(prompt).generate(prompt, max_new_tokens, **sampling)

    def generate_batch(
        self, prompts: Sequence[str], max_new_tokens: int | None = None, **settings: Any
    ) -> list[Generation]:
        """As :meth:`EncodedVideo.generate_batch`; the video is compressed and read for each prompt by itself."""
        check_batchable(settings)
        return EncodedVideo.generate_together(
            [self.asked(prompt) for prompt in prompts], prompts, max_new_tokens, **settings
        )

    def choose_letter(self, prompt: str, num_options: int) -> Choice:
        """As :meth:`EncodedVideo.choose_letter`, of the video compressed for the prompt."""
        return self.asked(prompt).choose_letter(prompt, num_options)
