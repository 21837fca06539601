"""[6] ``VideoQA``: read a video once, ask as often as you like.

What does not depend on the question is done once per video: decoding, the vision tower, the compressor, and the
language model's pass over everything that stands before the question, kept as its KV cache::

    <|im_start|>system ... <|im_start|>user\\n <video tokens> | \\nWho scored?<|im_end|>\\n<|im_start|>assistant\\n
    '----------- once per video: EncodedVideo ----------------'   '------------- once per question -------------'

Whether the question begins with that line break, the checkpoint says (``BimbaConfig.newline_after_medium``). Where the
compressor reads the question, less is done once per video: see :mod:`bimba.inference.conditioned`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import cycle

import torch
from torch import Tensor
from transformers import DynamicCache

from bimba.checkpoint import load_pretrained
from bimba.checkpoint.devices import resolve_device, resolve_dtype
from bimba.data.isolated import read_frames
from bimba.data.prompt import with_medium
from bimba.data.tokenize import tokenize_prompt
from bimba.data.transform import frames_to_pixels
from bimba.inference.answer import Generation
from bimba.inference.cache import LRUCache
from bimba.inference.conditioned import ConditionedVideo
from bimba.inference.encoded import EncodedVideo
from bimba.inference.fingerprint import fingerprint
from bimba.inference.schedule import WORKERS, Question, Work, answer_each
from bimba.inference.source import Loaded, VideoKey, identify
from bimba.inference.store import TokenStore
from bimba.model.bimba import CACHE, BimbaForConditionalGeneration
from bimba.model.processor import BimbaProcessor
from bimba.types import BimbaError, SequenceTooLongError, ShortVideos, VideoDecodeError

Video = EncodedVideo | ConditionedVideo  # in memory

CACHE_BYTES = 2 * 1024**3  # two or three 64-frame videos of the 7B model, thousands of the tiny one


class VideoQA:
    """Answers questions about video files with one model.

    Args:
        model, processor: as ``bimba.checkpoint.load_pretrained`` returns them.
        cache_bytes: how many bytes of encoded videos :meth:`encode` keeps, and of videos :meth:`answer_all` decodes
            ahead, together; 0 keeps none, and decodes one at a time.
        store: a folder that keeps the compressed tokens of videos over runs, or the space-time tokens where the
            compressor reads the question, so that they are decoded and encoded but once; None: nowhere.

    Attributes:
        on_stage: called with "decoding", "encoding" (vision tower and compressor) or "prefill" (the language model's
            pass over the video) when that begins; does nothing unless somebody who shows progress sets it.
    """

    def __init__(
        self,
        model: BimbaForConditionalGeneration,
        processor: BimbaProcessor,
        cache_bytes: int = CACHE_BYTES,
        store: TokenStore | None = None,
    ):
        self.model = model.eval()
        self.processor = processor
        self.cache: LRUCache[Video] = LRUCache(cache_bytes)
        self.store = store
        self.on_stage: Callable[[str], None] = lambda stage: None

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = None,
        temporal_pooling: int | None = None,
        base: str | os.PathLike[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
        store: TokenStore | None = None,
    ) -> VideoQA:
        """Loads a checkpoint.

        Args:
            path: a checkpoint folder, or a name that ``load_pretrained`` knows, such as ``bimba-tiny``.
            dtype: None keeps the checkpoint's.
            temporal_pooling: how many frames one frame of queries averages; None keeps the checkpoint's.
            base: where the base of an adapter lies; None: where its ``adapter_config.json`` says.
            cache_bytes, store: as for the class.

        Raises:
            BimbaError: no checkpoint there, or no such device or dtype.
        """
        where = resolve_device(device)
        model, processor = load_pretrained(
            path, base=base, temporal_pooling=temporal_pooling, dtype=resolve_dtype(dtype), device=where
        )
        return cls(model, processor, cache_bytes, store)

    @property
    def num_frames(self) -> int:
        """How many frames a video is read with unless the caller says otherwise."""
        return int(self.processor.num_frames)

    @property
    def max_length(self) -> int:
        """The longest sequence the language model takes, in tokens."""
        return int(self.model.config.text_config.max_position_embeddings)

    def read(
        self, path: str | os.PathLike[str], num_frames: int | None = None, short_videos: ShortVideos = "error"
    ) -> Tensor:
        """Decodes a video: ``num_frames`` frames spread over it, as (T, 3, height, width) pixel values on the CPU.

        Args:
            short_videos: what becomes of a video with fewer frames than that: "error", or "repeat" some of them.

        Raises:
            ShortVideoError: fewer frames than that, and ``short_videos`` is "error".
            VideoDecodeError: the file cannot be read.
            SequenceTooLongError: so many frames do not fit into the language model.
        """
        frames = read_frames(path, self._checked(num_frames), short_videos=short_videos)
        return frames_to_pixels(frames, self.processor.image_processor)

    def encode(
        self, path: str | os.PathLike[str], num_frames: int | None = None, short_videos: ShortVideos = "error"
    ) -> Video:
        """Reads and encodes a video, or takes it from the cache if the file has not changed since.

        Args:
            short_videos: as for :meth:`read`.

        Raises:
            ShortVideoError: fewer frames than that, and ``short_videos`` is "error".
            VideoDecodeError: the file cannot be read.
            SequenceTooLongError: so many frames do not fit into the language model.
        """
        key = self.identify(path, num_frames, short_videos)
        if (video := self.encoded(key)) is None:
            video = self.encode_loaded(key, self.load(key))
            self.cache.put(key, video)
        return video

    def answer_all(
        self,
        questions: Sequence[Question],
        *,
        short_videos: ShortVideos = "error",
        workers: int = WORKERS,
        work: Work | None = None,
        batch_questions: bool = False,
    ) -> list[Generation | VideoDecodeError]:
        """Answers questions about any number of videos, in their order; each video is decoded and encoded once.

        Tokens are those of one question at a time; with ``batch_questions``, in 16 bits, up to rounding.
        ``bimba.inference.schedule.answer_each`` gives each answer as soon as it is there, and has the same arguments.

        Returns:
            An answer for each question; where its video cannot be decoded, the error.

        Raises:
            BimbaError: videos that are missing, all of them named; or what :meth:`EncodedVideo.generate` raises.
        """
        found = answer_each(
            self, questions, short_videos=short_videos, workers=workers, work=work, batch_questions=batch_questions
        )
        answers = dict(found)
        return [answers[i] for i in range(len(questions))]

    def identify(
        self, path: str | os.PathLike[str], num_frames: int | None = None, short_videos: ShortVideos = "error"
    ) -> VideoKey:
        """What this video is, so sampled, as long as its file stays the same.

        Raises:
            VideoDecodeError: there is no such file.
            SequenceTooLongError: so many frames do not fit into the language model.
        """
        return identify(path, self._checked(num_frames), short_videos)

    def encoded(self, key: VideoKey) -> Video | None:
        """The video as :meth:`encode` left it in the cache, if it is still there."""
        return self.cache.get(key)

    def load(self, key: VideoKey) -> Loaded:
        """What can be done for a video without the model; for any thread.

        Raises:
            ShortVideoError, VideoDecodeError: as for :meth:`read`.
        """
        if self.store is not None and (found := self.store.get(self._stored_name(key))) is not None:
            tokens, is_short = found
            return Loaded(tokens, are_tokens=True, is_short=is_short)
        self.on_stage("decoding")
        frames = read_frames(key.path, key.num_frames, short_videos=key.short_videos)
        pixel_values = frames_to_pixels(frames, self.processor.image_processor)
        return Loaded(pixel_values, are_tokens=False, is_short=frames.num_total < key.num_frames)

    def loaded_bytes(self, key: VideoKey) -> int:
        """The most memory that the result of :meth:`load` takes: pixels, or tokens of the store if more."""
        side, config = self.processor.image_processor.size, self.model.config
        pixels = 4 * 3 * key.num_frames * int(side["height"]) * int(side["width"])
        if self.store is None:
            return pixels
        if self.model.question_conditioned:
            num_tokens = key.num_frames * config.patch_grid**2
        else:
            num_tokens = self.processor.num_video_tokens(key.num_frames)
        return max(pixels, num_tokens * int(config.text_config.hidden_size) * self.model.dtype.itemsize)

    def make_room(self, num_bytes: int) -> int:
        """Forgets cached videos until so many bytes of decoded ones fit beside the others.

        Returns:
            How many bytes they may take: no more than ``cache_bytes``.
        """
        num_bytes = min(num_bytes, self.cache.max_bytes)
        self.cache.make_room(num_bytes)
        return num_bytes

    def encode_loaded(self, key: VideoKey, loaded: Loaded) -> Video:
        """Encodes what :meth:`load` returned, and keeps its tokens in the store if there is one."""
        if loaded.are_tokens:
            return self._video(loaded.values.to(self.model.device), key.num_frames)
        video = self.encode_pixels(loaded.values)
        if self.store is not None:
            self.store.put(self._stored_name(key), video.tokens.cpu(), loaded.is_short)
        return video

    @cached_property
    def _tokens_fingerprint(self) -> str:
        return fingerprint(self.model, self.processor, of_tokens=True)

    def _stored_name(self, key: VideoKey) -> str:
        return hashlib.sha256(json.dumps([*key, self._tokens_fingerprint]).encode()).hexdigest()

    def _checked(self, num_frames: int | None) -> int:
        num_frames = self.num_frames if num_frames is None else num_frames
        if num_frames < 1:
            raise BimbaError(f"num_frames is {num_frames}; expected 1 or more.")
        self.check_length(self.processor.num_video_tokens(num_frames), num_frames)
        return num_frames

    def check_prompt(self, prompt: str, num_frames: int | None = None, new_tokens: int | None = None) -> None:
        """Says before anything is decoded what :meth:`EncodedVideo.generate` would say: for long runs.

        Raises:
            BimbaError: an empty prompt.
            SequenceTooLongError: video, prompt and answer are longer than the model takes.
        """
        num_frames = self._checked(num_frames)
        ids = self.tokenize(prompt, self.processor.num_video_tokens(num_frames))
        self.check_length(len(ids), num_frames, new_tokens or 1)

    @torch.inference_mode()
    def encode_pixels(self, pixel_values: Tensor) -> Video:
        """What :meth:`encode` does after :meth:`read`.

        Args:
            pixel_values: (T, 3, height, width).
        """
        self.on_stage("encoding")
        pixels = pixel_values.to(self.model.device, self.model.dtype)
        if self.model.question_conditioned:
            (tokens,) = self.model.space_time_tokens(pixels[None])
        else:
            tokens = self.model.encode_video(pixels)
        return self._video(tokens, num_frames=len(pixels))

    def _video(self, tokens: Tensor, num_frames: int) -> Video:
        """Of the tokens that no question changes: (T, H, W, C) before the compressor if it reads questions, or else
        (tokens, C) after it."""
        if self.model.question_conditioned:
            return ConditionedVideo(self, tokens, num_frames)
        return self.prefill(tokens, num_frames)

    @torch.inference_mode()
    def prefill(self, tokens: Tensor, num_frames: int) -> EncodedVideo:
        """The language model's pass over (tokens, C) tokens of a video and what stands before them."""
        self.on_stage("prefill")
        self.check_length(len(tokens), num_frames)
        # Any question gives the same ids up to the last video token; EncodedVideo relies on it.
        prompt = self.tokenize("?", len(tokens))
        prefix_ids = prompt[: int(torch.nonzero(prompt == self.processor.video_token_id).max()) + 1]
        language_model = self.model.language_model
        prefix = DynamicCache(config=language_model.config)
        embeddings = self.model.embed(prefix_ids[None].to(self.model.device), [tokens], [])
        language_model(inputs_embeds=embeddings, **{CACHE: prefix}, use_cache=True, logits_to_keep=1)
        return EncodedVideo(self, tokens, prefix_ids, prefix, num_frames)

    def tokenize(self, question: str, num_video_tokens: int) -> Tensor:
        """(L,) ids of a one-turn prompt about one video, on the CPU."""
        return self.tokenize_turns([question], num_video_tokens)

    def tokenize_turns(self, said: Sequence[str], num_video_tokens: int) -> Tensor:
        """(L,) ids of a conversation about one video that the model is to go on with, on the CPU.

        Args:
            said: questions and answers in turn, a question first and last.
        """
        if not said[-1].strip():
            raise BimbaError("The question is empty; give the text of a question.")
        texts = [with_medium(said[0], newline=self.processor.newline_after_medium), *said[1:]]
        conversation = [{"from": speaker, "value": text} for speaker, text in zip(cycle(("human", "gpt")), texts)]
        return tokenize_prompt(conversation, self.processor.tokenizer, [num_video_tokens])

    def check_length(self, num_tokens: int, num_frames: int, new_tokens: int = 0) -> None:
        """Whether so many tokens, of which a video of ``num_frames`` makes most, fit into the language model.

        Raises:
            SequenceTooLongError: with those still to come they do not.
        """
        if num_tokens + new_tokens > self.max_length:
            answer = f" and {new_tokens} for the answer" if new_tokens else ""
            raise SequenceTooLongError(
                f"{num_frames} frames make a sequence of {num_tokens} tokens{answer}; this model takes at most "
                f"{self.max_length}. Use fewer frames"
                + (", a shorter question or a smaller max_new_tokens." if new_tokens else ".")
            )
