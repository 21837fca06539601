"""[6] ``Conversation``: questions about one video, each answered in the light of what was said before.

::

    <video> Who scored? | Number 7. | When? | In minute 3. | And who ...
    '-------- keys and values that are kept -------------'   '- read -'

The prompt is, to the token, what training makes of a conversation of several turns (``bimba.data.tokenize``). Keys and
values of all that it shares with the prompt and answer before it are kept, so a question costs what its own words cost.
An answer whose tokens are not those that its text is tokenised to is read again from where they differ.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import TextIteratorStreamer

from bimba.inference.answer import Generation
from bimba.inference.prefix import cut_to, layers_of
from bimba.types import BimbaError, SequenceTooLongError

MAX_NEW_TOKENS = 256


class ReadVideo(Protocol):
    """What is asked of an ``EncodedVideo``."""

    num_frames: int
    tokens: Tensor

    @property
    def max_length(self) -> int: ...
    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...
    def turn_ids(self, said: Sequence[str]) -> Tensor: ...
    def prefix_copy(self) -> DynamicCache: ...
    def continuation(self, ids: Tensor, cache: DynamicCache, max_new_tokens: int, **settings: Any) -> Tensor: ...


class Conversation:
    """What is said about one video. Made by ``video.chat()``; for one thread at a time.

    Where the compressor reads the question, it reads the first one, as in training; later ones are asked of the same
    tokens.

    Args:
        ask_first: the video as the language model reads it when this is asked about it first.

    Attributes:
        turns: each question with its answer.
        last: the last answer, with the tokens that it took; None before there is one.
    """

    def __init__(self, ask_first: Callable[[str], ReadVideo]):
        self._ask_first = ask_first
        self.reset()

    def reset(self) -> None:
        """Forgets what was said; the video stays read."""
        self.turns: list[tuple[str, str]] = []
        self.last: Generation | None = None
        self._video: ReadVideo | None = None
        self._cache: DynamicCache | None = None
        self._known = torch.empty(0, dtype=torch.long)  # the ids that the cache holds keys and values of

    @property
    def num_tokens(self) -> int:
        """How many tokens the conversation has so far, those of the video included."""
        return 0 if self.last is None else self.last.prompt_tokens + self.last.new_tokens

    def say(self, question: str, max_new_tokens: int | None = None, **sampling: Any) -> Generator[str, None, None]:
        """The answer, piece by piece as its words come. Stopped early (by ``close()``, by Ctrl-C in the thread that
        reads it), it counts as said up to there.

        Args:
            max_new_tokens: None is 256, or as many as the model's limit leaves room for.
            sampling: as for :meth:`Answering.generate`; no beams.

        Returns:
            The pieces, which add up to the text of ``last``, but for white space around it.

        Raises:
            BimbaError: an empty question, or settings that cannot be streamed; at once, not at the first piece.
            SequenceTooLongError: conversation and question are longer than the model takes; nothing is lost.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise BimbaError(f"max_new_tokens is {max_new_tokens}; expected 1 or more.")
        if sampling.get("num_beams", 1) != 1:
            raise BimbaError(
                f"num_beams is {sampling['num_beams']}; answers come word by word here, which beams cannot. "
                "Leave num_beams out, or use video.generate."
            )
        said = [text for turn in self.turns for text in turn]
        video = self._ask_first(question) if self._video is None else self._video
        ids = video.turn_ids([*said, question])
        room = video.max_length - len(ids)
        if room < (max_new_tokens or 1):
            raise SequenceTooLongError(
                f"With this question the conversation has {len(ids)} tokens, {len(video.tokens)} of them the video's, "
                f"and {max_new_tokens or 1} for the answer; this model takes at most {video.max_length}. Start a new "
                "conversation (reset), ask a shorter question, or sample fewer frames."
            )
        limit = min(MAX_NEW_TOKENS, room) if max_new_tokens is None else max_new_tokens
        return self._answer(video, question, ids, limit, sampling)

    def _answer(
        self, video: ReadVideo, question: str, ids: Tensor, limit: int, sampling: dict[str, Any]
    ) -> Generator[str, None, None]:
        if self._cache is None:
            self._cache = video.prefix_copy()
            self._known = ids[: _length(self._cache)]  # any question gives the same ids up to there
        self._video = video
        # At least one position is read anew: the first word of the answer comes from the last of the prompt.
        kept = min(_num_shared(self._known, ids), len(ids) - 1)
        cache, self._known = cut_to(self._cache, kept), ids[:kept]
        # transformers puts the prompt first, which is empty where it is embeddings
        pieces = TextIteratorStreamer(video.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop = threading.Event()
        with ThreadPoolExecutor(1) as worker:
            stopping = StoppingCriteriaList([StopWhen(stop.is_set)])
            work = worker.submit(
                video.continuation, ids, cache, limit, streamer=pieces, stopping_criteria=stopping, **sampling
            )
            work.add_done_callback(lambda _: pieces.end())  # also where it failed
            try:
                yield from pieces
            finally:
                stop.set()
                words = work.result()  # of a stopped answer, after the word that it was at
                self._remember(question, ids, words, video.tokenizer)

    def _remember(self, question: str, ids: Tensor, words: Tensor, tokenizer: PreTrainedTokenizerBase) -> None:
        self._known = torch.cat([ids, words.cpu()])[: _length(self._cache)]
        text = str(tokenizer.decode(words, skip_special_tokens=True)).strip()
        self.last = Generation(text, prompt_tokens=len(ids), new_tokens=len(words))
        self.turns.append((question, text))


class StopWhen(StoppingCriteria):
    """Ends an answer after the word at which ``stopped`` says so."""

    def __init__(self, stopped: Callable[[], bool]):
        self._stopped = stopped

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self._stopped(), device=input_ids.device)


def _length(cache: DynamicCache | None) -> int:
    """How many positions every layer holds."""
    return 0 if cache is None else min(layer.get_seq_length() for layer in layers_of(cache))


def _num_shared(known: Tensor, ids: Tensor) -> int:
    """How many ids the two begin with in common."""
    length = min(len(known), len(ids))
    differences = torch.nonzero(known[:length] != ids[:length])
    return int(differences[0]) if len(differences) else length
