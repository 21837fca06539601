"""Counts an answer's tokens while they come; imports transformers."""

from __future__ import annotations

import time
from typing import Any

from transformers.generation.streamers import BaseStreamer

from bimba.cli.stages import WORDS, Stages, rate


class CountTokens(BaseStreamer):
    """Shows how many tokens an answer has, and how fast they come."""

    def __init__(self, stages: Stages):
        self.stages = stages
        self.num_tokens = -1  # the prompt comes first
        self._since = 0.0

    def put(self, value: Any) -> None:
        self.num_tokens += 1
        if self.num_tokens == 0:
            self.stages.enter("answering")  # here, not earlier: a compressor that reads questions works before
            self._since = time.perf_counter()
        elif self.num_tokens > 1:
            self.stages.show(f"{WORDS['answering']}: {rate(self.num_tokens, time.perf_counter() - self._since)}")

    def end(self) -> None:
        """The answer is whole."""
