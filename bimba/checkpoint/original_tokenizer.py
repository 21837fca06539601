"""The original's folder layout (LLaVA-Video, BIMBA-LLaVA): tokenizer files, in and out, and a processor of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers.models import BPE
from transformers import PreTrainedTokenizerBase, Qwen2Tokenizer

from bimba.checkpoint.errors import FETCH_AGAIN, explained
from bimba.checkpoint.tensors import listing, write_json
from bimba.data.tokenize import TURN_END, TURN_START
from bimba.model.config import BimbaConfig
from bimba.model.processor import BimbaProcessor
from bimba.types import BimbaError


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's Qwen2 tokenizer as it is, without our placeholders.

    Raises:
        BimbaError: no tokenizer there, or half of one.
    """
    with explained(folder, "tokenizer"):
        tokenizer: PreTrainedTokenizerBase = Qwen2Tokenizer.from_pretrained(folder)
    check_tokenizer(tokenizer, folder)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Raises a BimbaError unless a tokenizer has words and markup: transformers makes an empty one of missing files."""
    vocabulary = tokenizer.get_vocab()
    absent = [token for token in ("<|endoftext|>", TURN_START, TURN_END) if token not in vocabulary]
    if absent or not tokenizer.encode("A", add_special_tokens=False):
        held = listing(sorted(path.name for path in folder.iterdir()), 20)
        raise BimbaError(
            f"The tokenizer in {folder} is not whole: it has {len(vocabulary)} tokens"
            + (f" and no {', '.join(absent)}" if absent else "")
            + ". Expected tokenizer.json, or vocab.json and merges.txt with tokenizer_config.json and "
            f"added_tokens.json; the folder holds: {held}. {FETCH_AGAIN}"
        )


def set_turns(config: BimbaConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tells a model which tokens are around a turn, for its ``config.json`` may be older than the keys."""
    vocabulary = tokenizer.get_vocab()
    config.turn_start_token_id, config.turn_end_token_id = vocabulary[TURN_START], vocabulary[TURN_END]


def build_processor(config: BimbaConfig, tokenizer: PreTrainedTokenizerBase) -> BimbaProcessor:
    """A processor that makes the original's pixels; its tokenizer and ``config`` get the placeholder tokens.

    The placeholders come behind all tokens of the original. They may have no row in the embedding: none is ever read.
    """
    placeholders = [BimbaProcessor.video_token, BimbaProcessor.image_token]
    tokenizer.add_special_tokens({"additional_special_tokens": placeholders}, replace_extra_special_tokens=False)
    config.video_token_id, config.image_token_id = map(tokenizer.get_vocab().__getitem__, placeholders)
    set_turns(config, tokenizer)
    return BimbaProcessor.of(config, tokenizer, image_backend="pil")


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes the tokenizer without our placeholders, in the files of Qwen2's slow tokenizer, as the original reads."""
    ours = (BimbaProcessor.video_token, BimbaProcessor.image_token)
    added = {index: token for index, token in tokenizer.added_tokens_decoder.items() if str(token) not in ours}
    model = tokenizer.backend_tokenizer.model
    if not isinstance(model, BPE):
        raise BimbaError(
            f"The tokenizer is a {type(model).__name__}; the original reads Qwen2's byte-pair encoding only."
        )
    model.save(str(folder))  # vocab.json, merges.txt
    extra = [str(token) for token in added.values() if str(token) != tokenizer.pad_token]
    flags = ("lstrip", "normalized", "rstrip", "single_word")

    def described(token: Any, *, special: bool) -> dict[str, Any]:
        entry = {"content": str(token), **{flag: getattr(token, flag) for flag in flags}}
        return {**entry, "special": token.special} if special else entry

    by_text = {str(token): token for token in added.values()}
    write_json(folder / "added_tokens.json", dict(sorted((str(token), index) for index, token in added.items())))
    write_json(
        folder / "special_tokens_map.json",
        {
            "additional_special_tokens": extra,
            **{
                name: described(by_text[text], special=False)
                for name, text in (("eos_token", tokenizer.eos_token), ("pad_token", tokenizer.pad_token))
                if text in by_text
            },
        },
        sort=False,
    )
    settings = {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(index): described(token, special=True) for index, token in sorted(added.items())},
        "additional_special_tokens": extra,
        "bos_token": None,
        "chat_template": tokenizer.chat_template,
        "clean_up_tokenization_spaces": False,
        "eos_token": tokenizer.eos_token,
        "errors": "replace",
        "model_max_length": tokenizer.model_max_length,
        "pad_token": tokenizer.pad_token,
        "padding_side": tokenizer.padding_side,
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    write_json(
        folder / "tokenizer_config.json", {k: v for k, v in settings.items() if v is not None or k != "chat_template"}
    )
