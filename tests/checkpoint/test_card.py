"""The model card, as the hub reads it."""

from __future__ import annotations

import re

import pytest
from huggingface_hub import ModelCard
from tiny_checkpoint import tiny_model

from bimba.checkpoint import save_pretrained
from bimba.checkpoint.card import write_card
from bimba.model.config import BimbaConfig


def test_a_checkpoint_comes_with_its_card(tmp_path):
    model, processor = tiny_model()
    save_pretrained(model, processor, tmp_path / "checkpoint")
    card = ModelCard.load(tmp_path / "checkpoint" / "README.md")
    assert card.data.to_dict() == {
        "library_name": "bimba",
        "license": "apache-2.0",
        "pipeline_tag": "video-text-to-text",
        "tags": ["transformers", "bimba", "arxiv:2503.09590"],
    }
    assert f"| {model.config.num_frames}, each 32x32 pixels |" in card.text
    assert "| compressor | pool |" in card.text


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("lmms-lab/LLaVA-Video-7B-Qwen2", "lmms-lab/LLaVA-Video-7B-Qwen2"),
        ("./checkpoints/base", None),
        ("/mnt/models/base", None),
        ("llava-video-tiny-qwen2-base", None),
        (None, None),
    ],
)
def test_the_base_is_named_if_it_is_one_of_the_hubs(tmp_path, name, base):
    write_card(BimbaConfig(original_config={"_name_or_path": name}, compressor={"name": "mamba"}), tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.base_model == base
    assert "| compressor | mamba |" in card.text


def test_the_snippets_compile(tmp_path):
    write_card(BimbaConfig(), tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(), re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        names = re.findall(r"from (\w+) import (.+)", snippet)
        compile(snippet, "README.md", "exec")
        exec("\n".join(f"from {module} import {imported}" for module, imported in names), {})


def test_what_push_to_hub_uploads_is_tagged():
    assert {"bimba", "video-text-to-text", "arxiv:2503.09590"} <= set(tiny_model()[0].model_tags)
