"""The compressor against the original's outputs, gradients and query positions, and how fresh ones start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from bimba.model.compressor import MambaCompressor

GOLDEN = Path(__file__).parent / "compressor"
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
