"""Steps [3] to [5] up to the language model: videos, images and prompts to the embeddings it reads.

``encode_video`` is the way of a video: ``space_time_tokens`` [3], then ``compress`` [4], which a question may steer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM, SiglipVisionModel

from bimba.model.anyres import ImageSize
from bimba.model.compressor import Compressor
from bimba.model.config import BimbaConfig
from bimba.model.projector import Projector
from bimba.model.queries import pool_queries, query_grid
from bimba.model.question import question_ids
from bimba.model.splice import add_newlines, num_video_tokens, splice
from bimba.model.vision import patch_features
from bimba.types import BimbaError

PixelValues = Tensor | list[Tensor]  # (V, T, 3, height, width), or V tensors of (T, 3, height, width)


class MediaEncoder:
    """What :class:`~bimba.model.bimba.BimbaForConditionalGeneration` does in front of its language model."""

    config: BimbaConfig
    vision_tower: SiglipVisionModel
    projector: Projector
    image_newline: nn.Parameter
    compressor: Compressor | None
    language_model: Qwen2ForCausalLM

    def embed_prompt(
        self,
        input_ids: Tensor,
        pixel_values_videos: PixelValues | None = None,
        pixel_values_images: Sequence[Tensor] | None = None,
        image_sizes: Sequence[ImageSize] | None = None,
    ) -> Tensor:
        """A prompt and its videos and images, as for the model's ``forward``, to (B, L, C)."""
        videos = [] if pixel_values_videos is None else self.encode_videos_in(input_ids, pixel_values_videos)
        images = [] if pixel_values_images is None else self.encode_images(pixel_values_images, image_sizes)
        return self.embed(input_ids, videos, images)

    def embed(self, input_ids: Tensor, videos: list[Tensor], images: list[Tensor]) -> Tensor:
        """A prompt as the language model reads it.

        Args:
            input_ids: (B, L), as for :meth:`forward`.
            videos, images: (tokens, C) each, in order of appearance.

        Returns:
            (B, L, C): embeddings, with the tokens of videos and images in the place of their placeholders.

        Raises:
            BimbaError: another number of placeholders than of tokens.
        """
        is_video, is_image = input_ids == self.config.video_token_id, input_ids == self.config.image_token_id
        # Placeholders may lie behind the last row: the vocabulary of adapters is cut to the tokenizer's.
        embeddings = self.language_model.get_input_embeddings()(input_ids.masked_fill(is_video | is_image, 0))
        return splice(splice(embeddings, is_video, videos, "video"), is_image, images, "image")

    def num_video_tokens(self, num_frames: int) -> int:
        """How many tokens a video of so many frames becomes."""
        groups, side = query_grid(num_frames, self.config.patch_grid, self.config.reduction)
        return num_video_tokens(groups, side, side, self.config.newline_position)

    def num_image_tokens(self, tiles: Tensor, image_size: ImageSize) -> int:
        """How many tokens an image becomes; arguments as for :meth:`encode_image`."""
        anyres = self.config.anyres
        return anyres.num_tokens_whole if len(tiles) == 1 else anyres.num_tokens([int(side) for side in image_size])

    @property
    def question_conditioned(self) -> bool:
        """Whether a video is compressed anew for each question."""
        return self.compressor is not None and self.compressor.question_conditioned

    def questions(self, input_ids: Tensor, num_frames: Sequence[int]) -> list[Tensor] | None:
        """The ids (P,) of the question about each video (see :mod:`bimba.model.question`); None if nobody reads them.

        Args:
            input_ids: (B, L), as for :meth:`forward`.
            num_frames: of each video that stands in it.

        Raises:
            BimbaError: the prompt has another number of placeholders, or a video outside a whole turn.
        """
        if not self.question_conditioned:
            return None
        config = self.config
        return question_ids(
            input_ids,
            [self.num_video_tokens(number) for number in num_frames],
            (config.video_token_id, config.image_token_id),
            (config.turn_start_token_id, config.turn_end_token_id),
        )

    def encode_videos_in(self, input_ids: Tensor, pixel_values: PixelValues) -> list[Tensor]:
        """The tokens of the videos in a prompt, each compressed for its question if the compressor reads questions."""
        return self.encode_videos(pixel_values, self.questions(input_ids, [len(video) for video in pixel_values]))

    def passes(self, pixel_values: PixelValues, questions: Sequence[Tensor] | None = None) -> list[list[int]]:
        """Which videos go through the model as one batch: those with equally many frames and words of their question.

        Nothing is padded, so no video's tokens depend on another one.
        """
        members: dict[tuple[int, int], list[int]] = {}
        for i, video in enumerate(pixel_values):
            members.setdefault((len(video), 0 if questions is None else len(questions[i])), []).append(i)
        return list(members.values())

    def encode_videos(self, pixel_values: PixelValues, questions: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Like :meth:`encode_video` for many videos, with one question each."""
        if questions is not None and len(questions) != len(pixel_values):
            raise BimbaError(f"Got {len(pixel_values)} videos and {len(questions)} questions; give one per video.")
        tokens: list[Tensor] = [torch.empty(0)] * len(pixel_values)
        for members in self.passes(pixel_values, questions):
            space_time_tokens = self.space_time_tokens(torch.stack([pixel_values[i] for i in members]))
            asked = None if questions is None else torch.stack([questions[i] for i in members])
            for i, compressed in zip(members, self.compress(space_time_tokens, asked)):
                tokens[i] = compressed
        return tokens

    def encode_video(self, pixel_values: Tensor, question: Tensor | None = None) -> Tensor:
        """One video to the tokens the language model reads.

        Args:
            pixel_values: (T, 3, height, width) normalised frames.
            question: (P,) the ids of the question, as :meth:`questions` finds them in a prompt, for a compressor with
                ``question_conditioned``; None for all others.

        Returns:
            (tokens, C): vision, projector, compressor, newlines.

        Raises:
            BimbaError: a question is missing, is empty, or has nobody to read it.
        """
        return self.encode_videos([pixel_values], None if question is None else [question])[0]

    def encode_images(self, tiles: Sequence[Tensor], image_sizes: Sequence[ImageSize] | None) -> list[Tensor]:
        """Like :meth:`encode_image` for many images.

        Raises:
            BimbaError: another number of sizes than of images.
        """
        sizes = () if image_sizes is None else image_sizes
        if len(tiles) != len(sizes):
            raise BimbaError(
                f"Got pixel_values_images of {len(tiles)} images and {len(sizes)} image_sizes; "
                "give one (width, height) per image."
            )
        return [self.encode_image(*image) for image in zip(tiles, sizes)]

    def encode_image(self, tiles: Tensor, image_size: ImageSize) -> Tensor:
        """One image to the tokens the language model reads.

        Args:
            tiles: (tiles, 3, height, width) normalised pixels, the whole image first.
            image_size: (width, height) of the image before it was cut into tiles.

        Returns:
            (tokens, C): vision, projector, newlines. Images pass neither pooling nor compressor.

        Raises:
            BimbaError: the tiles have a wrong shape, or are not as many as an image of this size has.
        """
        features = self.projector(patch_features(self.vision_tower, tiles))  # (tiles, H, W, C)
        size = [int(number) for number in image_size]  # rows of a tensor would divide in single precision
        return self.config.anyres.pack(features, self.image_newline, size)

    def space_time_tokens(self, pixel_values: Tensor) -> Tensor:
        """(B, T, 3, height, width) -> (B, T, H, W, C): vision and projector, which no question changes."""
        features = patch_features(self.vision_tower, pixel_values.flatten(0, 1))
        tokens: Tensor = self.projector(features).unflatten(0, pixel_values.shape[:2])
        return tokens

    def compress(self, space_time_tokens: Tensor, questions: Tensor | None = None) -> list[Tensor]:
        """Compressor and newlines.

        Args:
            space_time_tokens: (B, T, H, W, C).
            questions: (B, P) ids, as for :meth:`encode_video`.

        Returns:
            The tokens (tokens, C) of each video.

        Raises:
            BimbaError: as for :meth:`encode_video`.
        """
        question = self._embed_questions(questions, space_time_tokens)
        queries = pool_queries(space_time_tokens, self.config.reduction)  # (B, T', H', W', C)
        grids = queries
        if self.compressor is not None:
            grids = self.compressor(space_time_tokens, queries.flatten(2, 3), question).unflatten(2, queries.shape[2:4])
        return [add_newlines(grid, self.image_newline, self.config.newline_position) for grid in grids]

    def _embed_questions(self, questions: Tensor | None, space_time_tokens: Tensor) -> Tensor | None:
        """(B, P) ids -> (B, P, C) as the compressor reads them: the language model's embeddings, without positions.

        Detached: the compressor learns to read the words of the language model, and does not change them.
        """
        if not self.question_conditioned:
            if questions is not None:
                raise BimbaError(
                    "Got a question for a video, and the compressor of this model reads none (question_conditioned is "
                    "false); leave it out."
                )
            return None
        if questions is None or not questions.shape[1]:
            received = "none" if questions is None else "an empty one"
            raise BimbaError(
                f"This model compresses a video for the question about it (question_conditioned=true); received "
                f"{received}. Give its ids: encode_video(pixels, model.questions(input_ids, [len(pixels)])[0]). Or "
                "call the model with input_ids, or ask through bimba.VideoQA, which find the question themselves."
            )
        embedded: Tensor = self.language_model.get_input_embeddings()(questions.to(space_time_tokens.device))
        return embedded.detach().to(space_time_tokens.device)
