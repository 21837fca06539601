"""The compressor's start as the identity, and its construction. What it computes is in tests/golden."""

from __future__ import annotations

import pytest
import torch

from bimba.model.compressor import MambaCompressor, PoolCompressor, build_compressor
from bimba.types import BimbaError


@pytest.mark.parametrize("mixer", ["mamba", "attention"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_a_fresh_compressor_returns_its_queries(mixer: str, num_layers: int) -> None:
    compressor = MambaCompressor(16, num_layers=num_layers, mixer=mixer)
    queries = torch.randn(2, 3, 4, 16)
    assert torch.equal(compressor(torch.randn(2, 3, 3, 3, 16), queries), queries)


def test_only_out_proj_learns_at_the_first_step() -> None:
    compressor = MambaCompressor(16)
    compressor(torch.randn(1, 3, 3, 3, 16), torch.randn(1, 3, 4, 16)).square().sum().backward()
    learning = [name for name, p in compressor.named_parameters() if p.grad is not None and p.grad.any()]
    assert learning == ["layers.0.mixer.out_proj.weight"]


def test_samples_do_not_mix() -> None:
    compressor = MambaCompressor(32)
    torch.nn.init.normal_(compressor.layers[0].mixer.out_proj.weight)
    tokens, queries = torch.randn(2, 4, 3, 3, 32), torch.randn(2, 2, 4, 32)
    together = compressor(tokens, queries)
    alone = torch.cat([compressor(tokens[i : i + 1], queries[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone)


def test_wrong_shapes_are_explained() -> None:
    compressor = MambaCompressor(16)
    with pytest.raises(BimbaError, match=r"expected space-time tokens \(B, T, H, W, 16\)"):
        compressor(torch.zeros(1, 3, 9, 16), torch.zeros(1, 3, 4, 16))
    with pytest.raises(BimbaError, match=r"received \(1, 3, 3, 3, 16\) and \(2, 3, 4, 16\)"):
        compressor(torch.zeros(1, 3, 3, 3, 16), torch.zeros(2, 3, 4, 16))


def test_pool_returns_its_queries() -> None:
    queries = torch.randn(1, 2, 4, 8)
    assert PoolCompressor(8)(torch.randn(1, 2, 3, 3, 8), queries) is queries


def test_no_config_is_no_compressor() -> None:
    assert build_compressor(None, 16) is None


def test_options_reach_the_compressor() -> None:
    compressor = build_compressor({"name": "mamba", "num_layers": 2, "d_state": 5}, 16)
    assert len(compressor.layers) == 2
    assert compressor.layers[1].mixer.A_log.shape == (32, 5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "lstm"}, "'lstm' is no compressor; choose one of: attention, .*mamba, .*pool"),
        ({"name": "os.path"}, "'os.path' is no compressor"),
        ({"name": "../mamba"}, "is no compressor"),
        ({"num_layers": 2}, "None is no compressor; choose one of: attention"),
        ({"name": "mamba", "layers": 2}, "has no option layers; its options are: num_layers, d_state"),
        ({"name": "mamba", "hidden_size": 2}, "has no option hidden_size"),
        ({"name": "pool", "stride": 2}, "has no option stride; its options are: mode, reduction"),
        (
            {"name": "mamba", "backward_init": "zero"},
            "backward_init='zero' is unknown; choose one of: original, forward",
        ),
        ({"name": "mamba", "query_position": "left"}, "query_position='left' is unknown; choose one of: interleaved"),
        ({"name": "mamba", "mixer": "lstm"}, "mixer='lstm' is unknown; choose one of: mamba, attention"),
        ({"name": "mamba", "mixer": 0}, "mixer=0 is unknown; choose one of: mamba, attention"),
        ({"name": "mamba", "d_state": 0}, "d_state must be a whole number of at least 1, received 0"),
        ({"name": "mamba", "num_layers": 1.5}, "num_layers must be a whole number of at least 1, received 1.5"),
        ({"name": "mamba", "expand": True}, "expand must be a whole number of at least 1, received True"),
        ({"name": "mamba2", "d_conv": 0}, "d_conv must be a whole number of at least 1, received 0"),
        ({"name": "gated_patch", "expand": 0}, "expand must be a whole number of at least 1, received 0"),
        ({"name": "mamba", "num_layers": 0}, "num_layers must be a whole number of at least 1, received 0"),
    ],
)
def test_wrong_configs_are_explained(config: dict, message: str) -> None:
    with pytest.raises(BimbaError, match=message):
        build_compressor(config, 16)


def test_an_unknown_scan_backend_is_explained() -> None:
    compressor = build_compressor({"name": "mamba", "scan_backend": "fast"}, 16)
    with pytest.raises(BimbaError, match="'fast'; choose one of: auto, .*cpp, chunked, reference"):
        compressor(torch.zeros(1, 2, 3, 3, 16), torch.zeros(1, 2, 4, 16))
