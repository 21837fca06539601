"""The chunked scan of Mamba-2 against its definition: outputs, states, every gradient, memory, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bimba.ops.ssd import ssd
from bimba.ops.ssd.reference import ssd_reference
from bimba.types import BimbaError

BATCH, HEADS, CHANNELS, STATES = 2, 3, 4, 5
NAMES = ("x", "dt", "A", "B", "C", "D", "initial_state")


def make_inputs(length: int, outputs: int, dtype: torch.dtype = torch.float64, speed: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    tensors = (
        normal(BATCH, length, HEADS, CHANNELS),
        speed * torch.nn.functional.softplus(2 * normal(BATCH, length, HEADS)),
        -torch.exp(normal(HEADS)),
        normal(BATCH, length, STATES),
        normal(BATCH, outputs, STATES),
        normal(HEADS),
        normal(BATCH, HEADS, CHANNELS, STATES),
    )
    return {name: x.to(dtype).requires_grad_() for name, x in zip(NAMES, tensors, strict=True)}


def run(scan: Any, inputs: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    y, last = scan(**inputs, **options)
    loss = (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum() + (last * last).sum()
    grads = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
    return {"y": y.detach(), "last_state": last.detach()} | dict(zip(inputs, grads, strict=True))


def assert_same(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        assert got[name].shape == want.shape, name
        if want.numel():
            error = (got[name] - want).abs().max() / want.abs().max().clamp(min=1e-30)
            assert error <= tolerance, f"{name}: {error:.1e}"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("queries", [None, [0], [22], [3, 4, 5, 17, 22], []], ids=str)
@pytest.mark.parametrize("chunk_size", [1, 5, 23, 64])
def test_chunks_equal_the_recurrence(reverse: bool, queries: list[int] | None, chunk_size: int) -> None:
    index = None if queries is None else torch.tensor(queries, dtype=torch.int64)
    inputs = make_inputs(23, 23 if queries is None else len(queries))
    options: dict[str, Any] = {"reverse": reverse, "query_index": index}
    assert_same(run(ssd, inputs, chunk_size=chunk_size, **options), run(ssd_reference, inputs, **options), 1e-12)


@pytest.mark.parametrize("speed", [1e-3, 1.0, 100.0], ids=lambda speed: f"speed {speed}")
def test_in_float32_whatever_the_decay(speed: float) -> None:
    """Steps of 1e-3 to 100: nothing overflows, and a slow stretch after a fast one keeps its digits."""
    exact = make_inputs(150, 150, speed=speed)
    rounded = {name: x.detach().float().requires_grad_() for name, x in exact.items()}
    widened = {name: x.detach().double().requires_grad_() for name, x in rounded.items()}
    got = {name: x.double() for name, x in run(ssd, rounded).items()}
    assert_same(got, run(ssd_reference, widened), 2e-5)


def test_half_types_have_a_wide_state_and_their_own_gradients() -> None:
    inputs = make_inputs(40, 40, torch.float32)
    half = {name: x.detach().bfloat16().requires_grad_() for name, x in inputs.items()}
    got = run(ssd, half)
    assert got["y"].dtype == got["last_state"].dtype == torch.float32
    assert all(got[name].dtype == torch.bfloat16 for name in NAMES)
    widened = {name: x.detach().float().requires_grad_() for name, x in half.items()}
    assert_same({name: x.float() for name, x in got.items()}, run(ssd_reference, widened), 1e-2)


def test_pieces_carry_the_state_on() -> None:
    inputs = make_inputs(30, 30)
    whole, last = ssd(**inputs)
    state, pieces = inputs.pop("initial_state"), []
    for piece in (slice(0, 11), slice(11, 12), slice(12, 30)):
        of_piece = {name: x[:, piece] if name in ("x", "dt", "B", "C") else x for name, x in inputs.items()}
        y, state = ssd(**of_piece, initial_state=state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    torch.testing.assert_close(state, last)


@pytest.mark.parametrize("reverse", [False, True])
def test_no_positions_leave_the_state_as_it_was(reverse: bool) -> None:
    inputs = make_inputs(0, 0)
    assert_same(run(ssd, inputs, reverse=reverse), run(ssd_reference, inputs, reverse=reverse), 0)
    assert torch.equal(ssd(**inputs)[1], inputs["initial_state"])


class _Largest(TorchDispatchMode):
    """The largest tensor that is made, in elements."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.numel())
        return result


def test_memory_is_that_of_inputs_and_outputs() -> None:
    """Nothing of size (L, L), nor of a state per position: the largest tensor is as large as x, or the kept states."""
    from bimba.ops.ssd import chunked

    length, chunk_size = 192, 16
    inputs = {name: x.detach() for name, x in make_inputs(length, length, torch.float32).items()}
    *tensors, state = inputs.values()
    with _Largest() as mode:
        y, last, saved = chunked.forward(*tensors, state, None, False, chunk_size, True)
        chunked.backward(*tensors, None, False, chunk_size, saved, y, last)
    assert saved.numel() == length // chunk_size * state.numel()
    assert mode.largest <= max(inputs["x"].numel(), saved.numel())


def test_one_node_of_a_compiled_graph() -> None:
    inputs = make_inputs(20, 3)
    index = torch.tensor([2, 9, 19])
    torch.compiler.reset()
    compiled = torch.compile(ssd, backend="aot_eager", fullgraph=True)
    options: dict[str, Any] = {"query_index": index, "chunk_size": 8}
    assert_same(run(compiled, inputs, **options), run(ssd, inputs, **options), 0)


def test_the_operator_is_registered_as_pytorch_wants_it() -> None:
    inputs = make_inputs(12, 2)
    torch.library.opcheck(torch.ops.bimba.ssd, (*inputs.values(), torch.tensor([4, 11]), True, 5, True))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x": torch.zeros(2, 9, 4)}, r"expected x \(B, L, H, P\)"),
        ({"dt": torch.zeros(2, 9, 2)}, r"dt must be a real floating-point tensor \(2, 9, 3\) on cpu, .* \(2, 9, 2\)"),
        ({"A": torch.zeros(3, dtype=torch.int64)}, "A must be a real floating-point tensor .* received torch.int64"),
        ({"C": torch.zeros(2, 8, 5)}, r"C must be .* \(2, 9, 5\)"),
        ({"query_index": torch.tensor([1, 1]), "C": torch.zeros(2, 2, 5)}, r"increasing positions in \[0, 8\]"),
        ({"query_index": torch.tensor([1, 9]), "C": torch.zeros(2, 2, 5)}, "2 values from 1 to 9"),
        ({"query_index": torch.tensor([1.0]), "C": torch.zeros(2, 1, 5)}, "int64 tensor on cpu, .* torch.float32"),
        ({"query_index": torch.tensor([[1]]), "C": torch.zeros(2, 1, 5)}, r"received torch.int64 \(1, 1\) on cpu"),
        ({"query_index": [1], "C": torch.zeros(2, 1, 5)}, "int64 tensor on cpu, received list"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, received 0"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_explained(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(BimbaError, match=message):
        ssd(**{**make_inputs(9, 9, torch.float32), **changed})
