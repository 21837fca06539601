"""Builds the tiny model's tokenizer: Qwen2's algorithm and special tokens, with a few hundred merges.

``python -m bimba.training.tiny_tokenizer FOLDER`` writes it. The corpus is the words of our own prompts, so a
needle prompt takes about as many tokens as it has words; any other text falls back to bytes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from bimba.data.needle import QUESTIONS
from bimba.data.prompt import SYSTEM_PROMPT, multiple_choice, open_ended
from bimba.data.tokenize import IMAGE_TOKEN, VIDEO_TOKEN

NUM_MERGED = 640 - 256 - 5  # with the bytes and the special tokens: a vocabulary of at most 640
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", VIDEO_TOKEN, IMAGE_TOKEN]

# Qwen2's pre-tokenizer: words, single digits, punctuation, line breaks.
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def corpus() -> list[str]:
    """Every prompt form with every question, and the words that questions about videos are made of."""
    common = (
        "What Which Who Where When Why How many much does do did is are was were the a an in on of at to from with "
        "before after first last person man woman people video scene color colour happen happens appear appears shown "
        "describe this that it they yes no and or not left right top bottom one two three four five"
    )
    options = ["yes", "no", "left", "right", "none"]
    texts = [multiple_choice(q, options[:n]) for q in QUESTIONS.values() for n in (2, 3, 4, 5)]
    texts += [open_ended(q) for q in QUESTIONS.values()]
    return [*texts, SYSTEM_PROMPT, "system user assistant\n", common, *(f" {word}" for word in common.split())]


def build() -> Qwen2Tokenizer:
    """Trains the tokenizer; deterministic."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + NUM_MERGED,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    model = tokenizer.to_str()
    fast = Qwen2Tokenizer(
        **_vocabulary(model), eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
    fast.add_special_tokens({"additional_special_tokens": SPECIAL_TOKENS[1:]})
    return fast


def _vocabulary(serialized: str) -> dict:
    import json

    model = json.loads(serialized)["model"]
    vocab = dict(model["vocab"])
    vocab.setdefault(SPECIAL_TOKENS[0], len(vocab))
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    return {"vocab": vocab, "merges": merges}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    build().save_pretrained(folder)
    print(f"Wrote the tokenizer to {folder}.")
