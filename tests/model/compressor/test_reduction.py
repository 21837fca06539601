"""How many frames and patch rows one query stands for: the compressor's option, and everyone who counts tokens."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from bimba.checkpoint import load_pretrained
from bimba.checkpoint.convert import convert
from bimba.checkpoint.io import save_pretrained
from bimba.model.compressor import build_compressor, reduction_of
from bimba.model.config import BimbaConfig
from bimba.model.queries import pool_queries, query_grid
from bimba.training import ModelSettings, build_model
from bimba.types import BimbaError
from tests.tiny_checkpoint import tiny_model
from tests.training.fakes import SIZES


def mamba(reduction: Any) -> dict[str, Any]:
    return {"name": "mamba", "d_state": 2, "reduction": reduction}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("reduction") / "reduced"
    save_pretrained(*tiny_model(), folder.parent / "plain")
    save_pretrained(*load_pretrained(folder.parent / "plain", compressor=mamba([2, 4])), folder)
    return folder


# -- the grid ----------------------------------------------------------------------------------------------------


def test_the_papers_sixteenfold_setting() -> None:
    """64 x 24 x 24 -> 16 x 12 x 12."""
    config = BimbaConfig(vision_config={"image_size": 336, "patch_size": 14}, compressor=mamba([4, 2]))
    assert config.reduction == (4, 2)
    assert query_grid(64, config.patch_grid, config.reduction) == (16, 12)


def test_without_one_it_is_the_published_pooling() -> None:
    for compressor in (None, {"name": "mamba"}, mamba(None), {"name": "pool"}):
        config = BimbaConfig(compressor=compressor, temporal_pooling=4)
        assert config.reduction == (4, 2)
        assert query_grid(64, 27, config.reduction) == (16, 14)


def test_it_counts_instead_of_temporal_pooling() -> None:
    assert BimbaConfig(compressor=mamba([2, 3]), temporal_pooling=4).reduction == (2, 3)


@pytest.mark.parametrize(("rows", "side"), [(1, 6), (2, 3), (3, 2), (6, 1)])
def test_queries_are_means_where_the_rows_divide_the_grid(rows: int, side: int) -> None:
    tokens = torch.randn(2, 4, 6, 6, 3)
    cells = tokens.unflatten(1, (2, 2)).unflatten(3, (side, rows)).unflatten(5, (side, rows))
    pooled = pool_queries(tokens, (2, rows))
    assert pooled.shape[1:3] == query_grid(4, 6, (2, rows))
    torch.testing.assert_close(pooled, cells.mean((2, 4, 6)))


def test_one_query_per_token() -> None:
    tokens = torch.randn(1, 2, 3, 5, 4)
    assert torch.equal(pool_queries(tokens, (1, 1)), tokens)


# -- refused -----------------------------------------------------------------------------------------------------


def test_rows_that_do_not_divide_the_grid_are_refused_when_the_model_is_described() -> None:
    with pytest.raises(BimbaError, match=r"\[4, 4\]: 4 rows.*the 27 patch rows.*give one of 1, 2, 3, 9, 27"):
        BimbaConfig(compressor=mamba([4, 4]))
    with pytest.raises(BimbaError, match="the 8 patch rows"):  # columns count as rows do
        pool_queries(torch.zeros(1, 2, 6, 8, 3), (1, 3))


@pytest.mark.parametrize("wrong", [4, "4x2", [4], [4, 2, 2], [0, 2], [4, 1.5], [True, 2]])
def test_anything_but_two_numbers_is_refused(wrong: Any) -> None:
    with pytest.raises(BimbaError, match=r"model\.compressor\.reduction is .*expected null .*or \[frames, rows\]"):
        build_compressor(mamba(wrong), 16)


def test_fewer_frames_than_one_query_stands_for() -> None:
    with pytest.raises(BimbaError, match="Got 3 frames, but one query averages 4"):
        query_grid(3, 27, (4, 2))


# -- through checkpoints -----------------------------------------------------------------------------------------


def test_a_checkpoint_keeps_it(saved: Any) -> None:
    model, processor = load_pretrained(saved)
    assert model.config.reduction == tuple(processor.reduction) == (2, 4)
    assert len(model.encode_video(torch.randn(4, 3, 32, 32))) == processor.num_video_tokens(4) == 2 * 1 * (1 + 1)


def test_another_one_keeps_the_weights(saved: Any, tmp_path: Any) -> None:
    model, processor = load_pretrained(saved)
    torch.nn.init.normal_(model.compressor.layers[0].mixer.out_proj.weight)
    save_pretrained(model, processor, tmp_path / "trained")
    again, counts = load_pretrained(tmp_path / "trained", compressor=mamba(None))
    assert (again.config.reduction, counts.reduction) == ((1, 2), None)
    assert len(again.encode_video(torch.randn(4, 3, 32, 32))) == counts.num_video_tokens(4) == 4 * 2 * (2 + 1)
    wanted = model.compressor.layers[0].mixer.out_proj.weight
    assert torch.equal(again.compressor.layers[0].mixer.out_proj.weight, wanted)


def test_a_checkpoint_of_before_loads(saved: Any, tmp_path: Any) -> None:
    model, processor = load_pretrained(saved.parent / "plain", compressor={"name": "mamba"}, temporal_pooling=2)
    save_pretrained(model, processor, tmp_path / "old")
    for file in ("config.json", "processor_config.json"):
        content = json.loads((tmp_path / "old" / file).read_text())
        content.pop("reduction", None)
        (tmp_path / "old" / file).write_text(json.dumps(content))
    again, counts = load_pretrained(tmp_path / "old")
    assert again.config.reduction == (2, 2)
    assert len(again.encode_video(torch.randn(4, 3, 32, 32))) == counts.num_video_tokens(4)


def test_temporal_pooling_cannot_say_something_else(saved: Any, tmp_path: Any) -> None:
    with pytest.raises(BimbaError, match=r"temporal_pooling=4 .*reduction=\[2, 4\].*reduction=\[4, 4\]"):
        load_pretrained(saved, temporal_pooling=4)
    with pytest.raises(BimbaError, match="Leave temporal_pooling out"):
        convert(saved, tmp_path / "converted", temporal_pooling=1)
    assert load_pretrained(saved, temporal_pooling=2)[0].config.reduction == (2, 4)
    assert load_pretrained(saved, temporal_pooling=4, compressor=mamba(None))[0].config.reduction == (4, 2)


def test_the_originals_layout_holds_the_published_rows_only(saved: Any, tmp_path: Any) -> None:
    model, processor = load_pretrained(saved, compressor={"name": "pool", "reduction": [2, 1]})
    save_pretrained(model, processor, tmp_path / "ours")
    with pytest.raises(BimbaError, match=r"reduction=\[2, 1\]; the original pools 2"):
        convert(tmp_path / "ours", tmp_path / "original", to="original")


# -- through training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("from_checkpoint", [True, False])
def test_a_training_gets_what_the_compressor_says(
    saved: Any, from_checkpoint: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="bimba.training.build")
    settings = ModelSettings(
        base=None,
        tokenizer="bimba-tiny",
        dtype="float32",
        gradient_checkpointing=False,
        config={"temporal_pooling": 4, "newline_position": "grid"} if from_checkpoint else {**SIZES, "num_frames": 4},
        compressor=mamba([2, 2]),
        tuning="lora",
        lora=None,
    )
    model, processor = build_model(settings, str(saved) if from_checkpoint else None)
    assert model.config.reduction == tuple(processor.reduction) == reduction_of(settings.compressor) == (2, 2)
    unread = [record.getMessage() for record in caplog.records if "temporal_pooling" in record.getMessage()]
    pooling = settings.config["temporal_pooling"]
    assert [message.partition(",")[0] for message in unread] == [
        f"model.config.temporal_pooling={pooling} is not read: one query stands for 2 frame(s)"
    ]
    side = model.config.vision_config.image_size
    assert len(model.encode_video(torch.randn(4, 3, side, side))) == processor.num_video_tokens(4)
