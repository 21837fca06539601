"""The compressor against the original's outputs and gradients, its start as the identity, its construction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from torch import Tensor

from bimba.model.compressor import MambaCompressor, PoolCompressor, build_compressor
from bimba.types import BimbaError

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests/golden/compressor"
CASES = [
    "a02_uni",
    "a03_bi_tpool4_b2",
    "a04_bi_l2_ms",
    "a05_bi_l2_noms",
    "a08_uni_l2_ms",
    "a09_attn",
    "a11_right_PATCHED",
    "a12_right_l2_ms_PATCHED",
    "a13_zero_outproj_upinit",
    "a14_nonorm_nores",
    "a17_oneframe",
    "a18_fp32flag_bf16_inputs",
    "a19_all_bf16",
    "a20_d_conv2_expand1",
    "b04_upstream_init_randout",
]


def load(case: str) -> tuple[dict, dict[str, Tensor]]:
    with safe_open(GOLDEN / f"{case}.safetensors", "pt") as file:
        return json.loads(file.metadata()["config"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def build(config: dict, tensors: dict[str, Tensor]) -> MambaCompressor:
    compressor = MambaCompressor(
        config["d_model"],
        num_layers=config["n_layer"],
        d_state=config["d_state"],
        d_conv=config["d_conv"],
        expand=config["expand"],
        query_position={"inter": "interleaved", "right": "appended"}[config["query_pos"]],
        bidirectional=config["bimamba"],
        multi_scale=config["multi_scale"],
        norm=config["use_norm"],
        residual=config["use_res"],
        mixer=config["mixer_type"],
    ).to(getattr(torch, config["param_dtype"]))
    state = {name.removeprefix("param."): x for name, x in tensors.items() if name.startswith("param.")}
    compressor.load_state_dict(state, strict=True)
    return compressor


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_equal_the_originals(case: str) -> None:
    config, tensors = load(case)
    compressor = build(config, tensors)
    space_time = tensors["in.space_time_tokens"].clone().requires_grad_()
    queries = tensors["in.queries"].clone().requires_grad_()
    out = compressor(space_time, queries)
    half = torch.bfloat16 in (space_time.dtype, next(compressor.parameters()).dtype)
    torch.testing.assert_close(out, tensors["out"], rtol=0, atol=3e-2 if half else 2e-6)

    (out.float() * tensors["in.cotangent"]).sum().backward()
    got = {"grad.in.space_time_tokens": space_time.grad, "grad.in.queries": queries.grad}
    got |= {f"grad.param.{name}": p.grad for name, p in compressor.named_parameters()}
    expected = {name: x for name, x in tensors.items() if name.startswith("grad.")}
    assert expected.keys() == got.keys()
    for name, want in expected.items():
        error = (got[name].float() - want.float()).abs().max()
        limit = (5e-2 if half else 1e-5) * want.float().abs().max()
        assert error <= limit, f"{name}: {error:.1e} > {limit:.1e}"


@pytest.mark.parametrize("case", CASES)
def test_query_positions_equal_the_originals(case: str) -> None:
    config, tensors = load(case)
    compressor = build(config, tensors)
    frames, height, width = config["space_time_grid"]
    num_queries = torch.Size(config["query_grid"]).numel()
    for layer in range(config["n_layer"]):
        positions = compressor.query_index(frames * height * width, num_queries)
        assert torch.equal(positions, tensors[f"query_index.layer{layer}"])
        frames = -(-frames // 2) if config["multi_scale"] else frames


def test_fresh_parameters_equal_the_originals_where_they_are_not_random() -> None:
    _, tensors = load("a13_zero_outproj_upinit")
    fresh = MambaCompressor(32).state_dict()
    for name in ("norm.weight", "mixer.A_log", "mixer.A_b_log", "mixer.D", "mixer.D_b", "mixer.out_proj.weight"):
        torch.testing.assert_close(fresh[f"layers.0.{name}"], tensors[f"param.layers.0.{name}"])


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
    compressor = build(*load("a03_bi_tpool4_b2"))
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


@pytest.mark.parametrize("path", sorted((ROOT / "conf/model/compressor").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_builds(path: Path) -> None:
    config = yaml.safe_load(path.read_text())
    compressor = build_compressor(config, hidden_size=16)
    queries = torch.randn(1, 2, 4, 16)
    assert torch.equal(compressor(torch.randn(1, 2, 3, 3, 16), queries), queries)


def test_no_config_is_no_compressor() -> None:
    assert build_compressor(None, 16) is None


def test_options_reach_the_compressor() -> None:
    compressor = build_compressor({"name": "mamba", "num_layers": 2, "d_state": 5}, 16)
    assert len(compressor.layers) == 2
    assert compressor.layers[1].mixer.A_log.shape == (32, 5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "perceiver"}, "'perceiver' is no compressor; choose one of: mamba, pool"),
        ({"name": "os.path"}, "'os.path' is no compressor"),
        ({"name": "../mamba"}, "is no compressor"),
        ({"num_layers": 2}, "None is no compressor; choose one of: mamba, pool"),
        ({"name": "mamba", "layers": 2}, "has no option layers; its options are: num_layers, d_state"),
        ({"name": "mamba", "hidden_size": 2}, "has no option hidden_size"),
        ({"name": "pool", "stride": 2}, "has no option stride; its options are: none"),
        ({"name": "mamba", "query_position": "left"}, "query_position='left' is unknown; choose one of: interleaved"),
        ({"name": "mamba", "mixer": "lstm"}, "mixer='lstm' is unknown; choose one of: mamba, attention"),
        ({"name": "mamba", "num_layers": 0}, "num_layers must be at least 1, received 0"),
    ],
)
def test_wrong_configs_are_explained(config: dict, message: str) -> None:
    with pytest.raises(BimbaError, match=message):
        build_compressor(config, 16)


def test_an_unknown_scan_backend_is_explained() -> None:
    compressor = build_compressor({"name": "mamba", "scan_backend": "fast"}, 16)
    with pytest.raises(BimbaError, match="'fast'; choose one of: auto, chunked, reference"):
        compressor(torch.zeros(1, 2, 3, 3, 16), torch.zeros(1, 2, 4, 16))
