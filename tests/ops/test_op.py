"""The scan as an operator of PyTorch: what torch.compile, torch.export and torch.library demand of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_selective_scan import make_inputs
from torch import Tensor, nn

from bimba.ops import selective_scan
from bimba.ops.selective_scan import op, scan_directions

INDEX = torch.tensor([0, 5, 100])


def make_rows(dtype: torch.dtype, requires_grad: bool = True, queries: int = 3) -> list[Tensor]:
    """Both directions: u, delta, A, B, C, D, delta_bias, initial_state."""
    one, other = (make_inputs((2, 6, 3, 101), queries, dtype, seed) for seed in (0, 1))
    inputs = {name: torch.stack([one[name], other[name]]) for name in one}
    rows = [
        inputs[name].mT.contiguous() if inputs[name].dim() == 4 else inputs[name]
        for name in ("u", "delta", "A", "B", "C", "D")
    ]
    rows += [inputs["delta_bias"], torch.randn(2, 2, 6, 3, dtype=dtype)]
    return [x.requires_grad_(requires_grad) for x in rows]


@pytest.mark.parametrize(
    ("backend", "dtype"), [("cpp", torch.float32), ("chunked", torch.float64), ("reference", torch.float64)]
)
@pytest.mark.parametrize("save", [False, True])
def test_fulfils_the_contract_of_operators(backend: str, dtype: torch.dtype, save: bool) -> None:
    rows = make_rows(dtype, requires_grad=save)
    torch.library.opcheck(op.run, (*rows, INDEX, True, False, backend, save))
    every = make_rows(dtype, requires_grad=save, queries=101)
    without = [*every[:5], None, None, None]
    torch.library.opcheck(op.run, (*without, None, True, True, backend, save))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_compiles_as_one_graph(backend: str) -> None:
    def scan(*rows: Tensor) -> tuple[Tensor, Tensor]:
        return scan_directions(
            *rows[:7], initial_state=rows[7], delta_softplus=True, query_index=INDEX, backend=backend
        )

    rows = make_rows(torch.float32)
    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True)
    for got, expected in zip(compiled(*rows), scan(*rows), strict=True):
        torch.testing.assert_close(got, expected)
    got, expected = (torch.autograd.grad([y.sum() for y in f(*rows)], rows) for f in (compiled, scan))
    torch.testing.assert_close(got, expected)


def test_exports_as_one_node() -> None:
    class Scan(nn.Module):
        def forward(self, **inputs: Tensor) -> Any:
            return selective_scan(**inputs, delta_softplus=True, query_index=INDEX)

    inputs = make_inputs((2, 6, 3, 101), 3, torch.float32)
    program = torch.export.export(Scan(), (), inputs)
    nodes = [str(node.target) for node in program.graph.nodes if "bimba" in str(node.target)]
    assert nodes == ["bimba.selective_scan.default"]
    torch.testing.assert_close(program.module()(**inputs), Scan()(**inputs))
