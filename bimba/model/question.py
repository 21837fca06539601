"""Step [4]: which ids of a prompt are the question that a video is compressed for.

It is the turn in which the video stands, without the placeholders: instructions, question and options, before and after
the video, just as the language model reads them; first comes the role, ``user``::

    <|im_start|>user\\n<video tokens>\\nWho scored?<|im_end|>\\n<|im_start|>assistant\\nNumber 7.<|im_end|>\\n ...
                ^^^^^^              ^^^^^^^^^^^^^

Nothing behind the turn belongs to it. An answer would be learned from itself. And a later question of the conversation
is not known yet when the first one is answered, from the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bimba.types import BimbaError


def question_ids(
    input_ids: Tensor, num_tokens: Sequence[int], placeholders: tuple[int, int], turn: tuple[int, int]
) -> list[Tensor]:
    """The ids (P,) of the question of each video, in order of appearance.

    Args:
        input_ids: (B, L) prompts or whole conversations in Qwen2's chat format, padded on either side.
        num_tokens: how many placeholders each video has.
        placeholders: the token of videos, and that of images.
        turn: the tokens that begin and end a turn.

    Raises:
        BimbaError: another number of placeholders, or a video outside a whole turn.
    """
    video, image = placeholders
    places = (input_ids == video).nonzero().tolist()  # (row, column) of each placeholder
    if len(places) != sum(num_tokens):
        raise BimbaError(
            f"The prompt has {len(places)} video placeholder tokens, but its {len(num_tokens)} video(s) make "
            f"{sum(num_tokens)} tokens. Build the prompt with BimbaProcessor and the same number of frames as the "
            "pixel values have."
        )
    questions, place = [], 0
    for count in num_tokens:
        row, column = places[place]
        place += count
        ids = input_ids[row]
        begins, ends = ((ids == token).nonzero().flatten() for token in turn)
        begins, ends = begins[begins < column], ends[ends > column]
        if not len(begins) or not len(ends) or (ids[begins[-1] : column] == turn[1]).any():
            raise BimbaError(
                "This model compresses a video for the question about it (question_conditioned=true): the user's turn "
                f"in which the video stands, between <|im_start|> and <|im_end|> (ids {turn[0]} and {turn[1]}). "
                "Received a video without one of them around it. Write the prompt in Qwen2's chat format: "
                "<|im_start|>user\\n<video>\\nQUESTION<|im_end|>\\n<|im_start|>assistant\\n"
            )
        words = ids[int(begins[-1]) + 1 : int(ends[0])]
        questions.append(words[(words != video) & (words != image)])
    return questions
