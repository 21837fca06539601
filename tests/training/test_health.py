import pytest
import torch
from torch.nn import functional as F

from bimba.model.mamba import MambaMixer
from bimba.model.mamba2 import Mamba2Mixer
from bimba.training.health import CompressorHealth, _windows, scan_speed
from tests.training.fakes import FakeData, read_metrics, tiny_module, tiny_trainer

MAMBA = {"compressor": {"name": "mamba"}}


def mixer(**options):
    torch.manual_seed(0)
    return MambaMixer(8, d_state=3, **options)


@pytest.mark.parametrize("direction", [0, 1])
def test_the_step_size_at_a_position_is_that_of_the_whole_sequence(direction):
    layer, x = mixer(), torch.randn(20, 8)
    delta, memory = scan_speed(layer, _windows(x, layer, 1000), direction)
    parameters = layer.directions((direction,))
    u = layer.convolve(layer.inner(x[None]), parameters)[0, 0]  # (L, D)
    low_rank = F.linear(u, parameters.x_proj[0])[:, : layer.dt_rank]
    expected = F.softplus(F.linear(low_rank, parameters.dt_proj[0], parameters.dt_bias[0]))
    torch.testing.assert_close(delta, expected[3:-3])  # 3: as far as a convolution of 4 taps sees
    A_log = layer.A_b_log if direction else layer.A_log
    torch.testing.assert_close(memory, 1 / (expected[3:-3].mean(0)[:, None] * A_log.exp()))


@pytest.mark.parametrize("direction", [0, 1])
def test_mamba2s_step_size_and_memory_are_a_heads(direction):
    torch.manual_seed(0)
    layer, x = Mamba2Mixer(8, d_state=3, head_dim=4), torch.randn(20, 8)
    delta, memory = scan_speed(layer, _windows(x, layer, 1000), direction)
    projection, A_log = (layer.dt_proj_b, layer.A_b_log) if direction else (layer.dt_proj, layer.A_log)
    expected = F.softplus(projection(x))[3:-3]
    torch.testing.assert_close(delta, expected)
    torch.testing.assert_close(memory, 1 / (expected.mean(0) * A_log.exp()))


def test_positions_are_spread_over_the_sequence_and_a_short_one_is_padded():
    layer = mixer()
    x = torch.arange(100.0)[:, None].expand(-1, 8)
    windows = _windows(x, layer, 3)
    assert windows.shape == (3, 7, 8)
    assert windows[:, 3, 0].tolist() == [3.0, 50.0, 96.0]
    assert _windows(x[:2] + 1, layer, 3)[:, 3, 0].tolist() == [1.0, 2.0]


def fit(tmp_path, model, steps=2, **settings):
    module = tiny_module(model=model, lr=1e-2)
    callback = CompressorHealth(every_n_steps=1, **settings)
    tiny_trainer(tmp_path, steps, [callback]).fit(module, FakeData(module.processor))
    hooks = [hook for part in module.model.modules() for hook in part._forward_hooks]
    assert not hooks, "left behind"
    return {key.removeprefix("compressor/"): values for key, values in read_metrics(tmp_path).items()}


def test_a_fresh_compressor_changes_no_query_and_a_trained_one_does(tmp_path):
    metrics = fit(tmp_path, MAMBA, steps=6, changed_above=1e-3)
    assert metrics["queries_changed"][0] == metrics["query_change"][0] == 0.0
    assert metrics["queries_changed"][-1] > 0.5
    assert metrics["query_change"][-1] > 1e-3


def test_a_fresh_compressor_has_the_step_sizes_it_is_made_with(tmp_path):
    metrics = fit(tmp_path, MAMBA, steps=1)
    assert 1e-3 < metrics["delta/forward"][0] < 0.1
    assert 0.4 < metrics["delta/backward"][0] < 1.1  # the original's: a backward scan that forgets fast
    assert metrics["memory_tokens/forward"][0] > 10 * metrics["memory_tokens/backward"][0]
    assert metrics["memory_tokens/forward"][0] > metrics["memory_tokens_median/forward"][0] > 1


def test_layers_have_their_own_numbers_and_streaming_changes_none(tmp_path):
    two = {"compressor": {"name": "mamba", "num_layers": 2}}
    streamed = {"compressor": {**two["compressor"], "chunk_tokens": 16}}
    whole, pieces = fit(tmp_path / "a", two, steps=1), fit(tmp_path / "b", streamed, steps=1)
    assert {"layer_0/delta/forward", "layer_1/memory_tokens/backward", "queries_changed"} < set(whole)
    assert pieces["layer_1/delta/forward"] == pytest.approx(whole["layer_1/delta/forward"])


def test_attention_and_one_direction_have_no_more_than_they_have(tmp_path):
    found = fit(tmp_path / "a", {"compressor": {"name": "mamba", "mixer": "attention"}}, steps=1)
    assert "query_change" in found and not [key for key in found if key.startswith("delta")]
    found = fit(tmp_path / "b", {"compressor": {"name": "mamba", "bidirectional": False}}, steps=1)
    assert "delta/forward" in found and "delta/backward" not in found
    found = fit(tmp_path / "e", {"compressor": {"name": "mamba2"}}, steps=1)
    assert found["memory_tokens/backward"][0] >= found["memory_tokens_median/backward"][0] > 0
    assert "query_change" not in fit(tmp_path / "c", {"compressor": None}, steps=1)
    assert fit(tmp_path / "d", {"compressor": {"name": "pool"}}, steps=1)["query_change"] == [0.0]


def test_a_step_without_a_video_reports_nothing(tmp_path):
    module = tiny_module(model=MAMBA)
    tiny_trainer(tmp_path, 2, [CompressorHealth(1)]).fit(module, FakeData(module.processor, bad=[0, 1]))
    assert len(read_metrics(tmp_path)["compressor/query_change"]) == 1
