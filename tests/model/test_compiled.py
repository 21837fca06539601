"""The compressor under what training puts around it: torch.compile, torch.export, activation checkpointing, FSDP2."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bimba.model.compressor import MambaCompressor

HIDDEN = 16


def make(**options: Any) -> MambaCompressor:
    torch.manual_seed(0)
    compressor = MambaCompressor(HIDDEN, d_state=4, **options)
    for layer in compressor.layers:
        nn.init.normal_(layer.mixer.out_proj.weight, std=0.1)
    return compressor


def make_inputs(frames: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(1, frames, 3, 3, HIDDEN, generator=generator).requires_grad_()
    return tokens, torch.randn(1, frames, 2, HIDDEN, generator=generator).requires_grad_()


def gradients(run: Any, compressor: nn.Module, frames: int = 4) -> dict[str, Tensor]:
    compressor.zero_grad()
    inputs = make_inputs(frames)
    y = run(*inputs)
    y.square().sum().backward()
    grads = {name: p.grad for name, p in compressor.named_parameters()}
    return {"y": y.detach(), "tokens": inputs[0].grad, "queries": inputs[1].grad} | grads


@pytest.mark.parametrize("options", [{}, {"num_layers": 2}, {"chunk_tokens": 16}], ids=str)
def test_compiles_without_a_graph_break(options: dict[str, Any]) -> None:
    torch.compiler.reset()
    compressor = make(**options)
    compiled = torch.compile(compressor, backend="aot_eager", fullgraph=True)
    for frames in (4, 5, 6):  # the second and third length are compiled with sizes that are not fixed
        expected = gradients(compressor, compressor, frames)
        torch.testing.assert_close(gradients(compiled, compressor, frames), expected)


def test_exports() -> None:
    compressor, inputs = make(), make_inputs()
    program = torch.export.export(compressor, inputs)
    nodes = [str(node.target) for node in program.graph.nodes if "bimba" in str(node.target)]
    assert nodes == ["bimba.causal_conv1d.default", "bimba.selective_scan.default"] * 2  # a direction at a time
    torch.testing.assert_close(program.module()(*inputs), compressor(*inputs))


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("options", [{}, {"chunk_tokens": 16}], ids=str)
def test_activation_checkpointing(options: dict[str, Any], use_reentrant: bool) -> None:
    compressor = make(**options)
    expected = gradients(compressor, compressor)
    got = gradients(lambda *inputs: checkpoint(compressor, *inputs, use_reentrant=use_reentrant), compressor)
    torch.testing.assert_close(got, expected)


def _rank(rank: int, port: int, chunk_tokens: int, results: Any) -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    compressor = make(chunk_tokens=chunk_tokens)
    for layer in compressor.layers:
        fully_shard(layer)
    fully_shard(compressor)
    got = gradients(compressor, compressor)  # of the same sample on both ranks, so that the mean is a sample's
    whole = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in got.items()}
    if rank == 0:
        results.put({name: x.numpy() for name, x in whole.items()})
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("chunk_tokens", [0, 16])
def test_fsdp2(chunk_tokens: int) -> None:
    context = torch.multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    ranks = [context.Process(target=_rank, args=(rank, port, chunk_tokens, results)) for rank in range(2)]
    for process in ranks:
        process.start()
    got = results.get(timeout=120)
    for process in ranks:
        process.join(60)
        assert process.exitcode == 0
    compressor = make(chunk_tokens=chunk_tokens)
    expected = gradients(compressor, compressor)
    torch.testing.assert_close({name: torch.from_numpy(x) for name, x in got.items()}, expected)
