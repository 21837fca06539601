"""The scan as an operator of PyTorch: what torch.compile, torch.export and torch.library demand of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_selective_scan import make_inputs
from torch import Tensor, nn

from bimba.ops import selective_scan
from bimba.ops.selective_scan import op, scan_directions
from bimba.types import BimbaError

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


@pytest.mark.parametrize(("forward", "backward"), [("chunked", "reference"), ("cpp", None), ("reference", "cpp")])
def test_the_backward_pass_runs_where_the_forward_pass_ran(
    forward: str, backward: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(torch.float32)
    expected = torch.autograd.grad(
        scan_directions(*rows[:7], delta_softplus=True, query_index=INDEX, backend=forward)[0].sum(), rows[:7]
    )
    monkeypatch.setenv("BIMBA_SCAN_BACKEND", forward)
    y, _ = scan_directions(*rows[:7], delta_softplus=True, query_index=INDEX)
    if backward is None:
        monkeypatch.delenv("BIMBA_SCAN_BACKEND")
    else:
        monkeypatch.setenv("BIMBA_SCAN_BACKEND", backward)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), rows[:7]), expected, rtol=0, atol=0)


def test_states_of_another_backend_are_refused() -> None:
    rows = make_rows(torch.float32, requires_grad=False)
    inputs = (*rows, INDEX, True, False)
    y, last, saved = op.run(*inputs, "cpp", True)
    with pytest.raises(BimbaError, match="run forward and backward pass with the same backend"):
        op.run_backward(*inputs, "cpp", saved[..., :-1].contiguous(), y, last)


@pytest.mark.parametrize("backend", ["cpp", "chunked"])
def test_a_graph_made_without_gradients_still_has_them(backend: str) -> None:
    class Scan(nn.Module):
        def forward(self, **inputs: Tensor) -> Any:
            return selective_scan(**inputs, delta_softplus=True, query_index=INDEX, backend=backend)

    inputs = make_inputs((2, 6, 3, 101), 3, torch.float32)
    with torch.no_grad():
        program = torch.export.export(Scan(), (), inputs).module()
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    got, expected = (torch.autograd.grad(f(**leaves).sum(), list(leaves.values())) for f in (program, Scan()))
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.zeros(3, 2, 101, 6)}, r"of R = 1 or 2 directions, received \(3, 2, 101, 6\)"),
        ({0: torch.zeros(2, 101, 6)}, r"expected rows u \(R, B, L, D\)"),
        ({3: torch.zeros(2, 2, 5, 3)}, r"B must have shape \(2, 2, 101, 3\), received \(2, 2, 5, 3\)"),
        ({4: torch.zeros(2, 2, 101, 3)}, r"C must have shape \(2, 2, 3, 3\)"),
        ({6: torch.zeros(2, 6, dtype=torch.int64)}, "delta_bias must be a real floating-point tensor"),
        ({7: torch.zeros(2, 2, 3, 6)}, r"initial_state must have shape \(2, 2, 6, 3\)"),
        ({1: torch.zeros(2, 2, 101, 6, device="meta")}, "delta is on meta, u on cpu"),
    ],
)
def test_wrong_rows_are_explained(change: dict[int, Tensor], message: str) -> None:
    rows = make_rows(torch.float32, requires_grad=False)
    for place, x in change.items():
        rows[place] = x
    with pytest.raises(BimbaError, match=message):
        scan_directions(*rows[:7], initial_state=rows[7], query_index=INDEX)


@pytest.mark.parametrize("backend", ["cpp", "chunked", "reference"])
def test_an_initial_state_of_another_dtype(backend: str) -> None:
    rows = make_rows(torch.float32)
    expected = scan_directions(
        *rows[:7], initial_state=rows[7], delta_softplus=True, query_index=INDEX, backend=backend
    )
    state = rows[7].detach().double().requires_grad_()
    got = scan_directions(*rows[:7], initial_state=state, delta_softplus=True, query_index=INDEX, backend=backend)
    torch.testing.assert_close(got, expected)
    (grad,) = torch.autograd.grad(got[0].sum(), state)
    assert grad.dtype == torch.float64
    torch.testing.assert_close(grad.float(), torch.autograd.grad(expected[0].sum(), rows[7])[0])


@pytest.mark.parametrize("backend", ["cpp", "chunked"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_overlapping_memory(backend: str, dtype: torch.dtype) -> None:
    """A cast of such a view chooses strides of its own."""
    rows = [x.to(dtype) for x in make_rows(torch.float32, requires_grad=False)]
    memory = torch.randn(2000, generator=torch.Generator().manual_seed(3)).to(dtype)
    rows[0] = memory.as_strided((2, 2, 101, 6), (1, 700, 6, 1))
    expected = scan_directions(*(x.double() for x in rows[:7]), delta_softplus=True, query_index=INDEX)
    got = scan_directions(*rows[:7], delta_softplus=True, query_index=INDEX, backend=backend)
    torch.testing.assert_close([x.double() for x in got], list(expected), rtol=1e-4, atol=1e-4)
