"""The compiled scan's arithmetic: errors of its functions, steps large or next to nothing, what is not finite."""

from __future__ import annotations

import math

import pytest
import torch
from test_cpp import compare
from test_selective_scan import make_inputs

from bimba.ops import extension, selective_scan
from bimba.ops.selective_scan import cpp, scan_directions


def test_a_state_that_hardly_decays_is_not_worn_away_by_rounding():
    """An exponential that is 1.0000001 at 0 would be 5 % off after half a million steps."""
    length = 500_000
    ones = torch.ones(1, 1, length)
    y = selective_scan(
        (torch.arange(length) == 0).float().view(1, 1, length), 1e-9 * ones, -torch.ones(1, 1), 1e9 * ones,
        torch.ones(1, 1, 1), query_index=torch.tensor([length - 1]), backend="cpp",
    )  # fmt: skip
    assert abs(float(y) - math.exp(-1e-9 * length)) < 1e-3


def test_steps_from_nothing_to_everything():
    inputs = make_inputs((1, 16, 4, 64))
    inputs["delta"] = torch.linspace(-100, 100, 64).double().expand(1, 16, 64).contiguous()
    compare(inputs, delta_softplus=True)
    inputs["delta"] = torch.logspace(-30, 4, 64).double().expand(1, 16, 64).contiguous()
    compare({**inputs, "delta_bias": torch.zeros(16).double()})


@pytest.mark.parametrize("reverse", [False, True])
def test_tiles_whose_exponents_may_overflow_among_others(reverse):
    """Steps of 300 in the third of five tiles, for channels of the second vector of three."""
    inputs = make_inputs((1, 40, 16, 300), num_queries=60)
    inputs["delta"][:, 16:21, 140:150] = 300
    queries = torch.arange(0, 300, 5)
    compare(inputs, delta_softplus=True, reverse=reverse, query_index=queries)


def one_token(*, u, delta, A, start, softplus):
    """The state after one token, of one channel for each number of delta and A: exp(delta A) start + delta u."""
    one = torch.ones(1, 1, 1, 1)
    _, state = scan_directions(
        torch.full_like(delta, u).view(1, 1, 1, -1), delta.view(1, 1, 1, -1), A.view(1, -1, 1), one, one,
        initial_state=torch.full_like(delta, start).view(1, 1, -1, 1), delta_softplus=softplus, backend="cpp",
    )  # fmt: skip
    return state.flatten().double()


def exponential(x):
    return one_token(u=0, delta=torch.ones_like(x), A=x, start=1, softplus=False)


def softplus(x):
    return one_token(u=1, delta=x, A=torch.zeros_like(x), start=0, softplus=True)


ROUNDING = 2.0**-23  # relative, of an exponent: LOG2_E is rounded, and the product with it


def test_the_error_of_the_exponential():
    x = torch.cat([torch.linspace(-87.33, 88.72, 100_001), torch.linspace(-1, 1, 50_001)])
    error = (exponential(x) / x.double().exp() - 1).abs()
    assert torch.all(error <= 2e-7 + ROUNDING * x.double().abs())


def test_the_exponential_of_what_is_large():
    assert torch.all(exponential(torch.tensor([88.73, 200, 1e30, math.inf])) == math.inf)
    tiny = exponential(torch.tensor([-87.5, -200, -1e30, -math.inf]))
    assert torch.all((tiny >= 0) & (tiny < 2**-126))
    assert torch.all(tiny[1:] == 0)
    assert torch.all(exponential(torch.full((20,), math.nan)).isnan())


def test_the_error_of_softplus():
    x = torch.cat([torch.linspace(-87.33, 100, 100_001), torch.linspace(-3, 3, 50_001)])
    expected = torch.nn.functional.softplus(x.double(), threshold=1000)
    error = (softplus(x) / expected - 1).abs()
    assert torch.all(error <= 2e-7 + ROUNDING * (-x.double()).clamp(min=0))
    assert torch.equal(softplus(torch.tensor([1e30, -1e30, -math.inf])), torch.tensor([1e30, 0, 0]).double())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["u", "delta", "B", "C"])
def test_what_is_not_finite_spreads_as_in_the_reference(name, value):
    inputs = {name: x.float() for name, x in make_inputs((1, 20, 4, 70)).items()}
    inputs[name][0, 1, 30] = value
    finite = selective_scan(**inputs, delta_softplus=True, backend="cpp").isfinite()
    expected = selective_scan(**inputs, delta_softplus=True, backend="reference").isfinite()
    assert torch.equal(finite, expected)


NARROWER = {"four lanes": ()}
if {"avx2", "fma"} <= set(extension._processor().split()):
    NARROWER["eight lanes"] = ("-mavx2", "-mfma")


@pytest.mark.parametrize("vectors", NARROWER)
def test_a_processor_without_avx512_and_openmp_computes_the_same(vectors, tmp_path, monkeypatch):
    monkeypatch.setenv("BIMBA_CACHE_DIR", str(tmp_path))
    here = ("-march=native", "-fopenmp")  # and without OpenMP, as on macOS: with threads of its own
    flags = (*(flag for flag in extension.FLAGS if flag not in here), *NARROWER[vectors], "-pthread")
    monkeypatch.setattr(extension, "FLAGS", flags)
    monkeypatch.setattr(extension, "_THREADS", "-pthread")
    monkeypatch.setattr(cpp, "_threads", lambda: 2)
    library = extension.build(f"bimba_scan_{len(flags)}", [cpp._SOURCES / "scan.cpp"], cpp._HEADERS)
    monkeypatch.setattr(cpp, "_library", lambda: library)
    for batch in (1, 2, 3):
        compare(make_inputs((batch, 40, 16, 130)), delta_softplus=True)
    test_steps_from_nothing_to_everything()
    test_a_state_that_hardly_decays_is_not_worn_away_by_rounding()
    test_the_error_of_the_exponential()
    test_the_exponential_of_what_is_large()
    test_the_error_of_softplus()
    for value in (math.nan, math.inf, -math.inf):
        test_what_is_not_finite_spreads_as_in_the_reference("delta", value)
