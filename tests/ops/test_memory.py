"""Memory of the CPU kernels."""

from __future__ import annotations

import gc
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from bimba.ops import memory, selective_scan


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0, 5), (3, 5), (2**12, 2**11 + 1)])
def test_as_torch_makes_it(shape, dtype):
    expected = torch.empty(shape, dtype=dtype)
    x = memory.new(*shape, dtype=dtype)
    assert (x.shape, x.stride(), x.dtype, x.device) == (expected.shape, expected.stride(), dtype, expected.device)
    assert x.untyped_storage().nbytes() == expected.untyped_storage().nbytes()
    assert torch.equal(x.fill_(3), torch.full(shape, 3, dtype=dtype))


@pytest.mark.parametrize("extra", [1, 2**18, 2**19 - 1])
def test_little_more_than_a_page_takes_little_more_memory(extra):
    page = os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * page

    memory.release()
    before = resident()
    tensors = [kept(2**19 + extra).fill_(1) for _ in range(16)]  # 2 MiB and a part of the next
    assert resident() - before < 1.3 * sum(x.nbytes for x in tensors) + 2**21


@pytest.mark.parametrize("count", [2**44, 2**62])
def test_more_than_there_is_fails_as_in_torch(count):
    with pytest.raises(RuntimeError) as expected:
        torch.empty(count, dtype=torch.float32)
    with pytest.raises(RuntimeError) as caught:
        memory.new(count)
    assert str(caught.value).splitlines()[0] == str(expected.value).splitlines()[0]


def test_another_default_device_changes_nothing():
    with torch.device("meta"):
        assert memory.new(2**22).is_cpu and memory.new(2).is_cpu


def test_memory_lives_as_long_as_a_tensor_in_it():
    part = memory.new(2**11, 2**11).fill_(7)[-1]
    gc.collect()
    memory.new(2**11, 2**11).fill_(0)
    assert torch.equal(part, torch.full((2**11,), 7.0))


@pytest.mark.parametrize("lacks", ["the word", "the pages"])
def test_a_system_without_huge_pages(monkeypatch, lacks):
    memory.release()  # what is kept would be taken, and the system not asked
    if lacks == "the word":
        monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    else:
        monkeypatch.setattr(mmap, "MADV_HUGEPAGE", 2**20, raising=False)  # no advice: EINVAL
    assert torch.equal(memory.new(2**22).fill_(1), torch.ones(2**22))


kept = partial(memory.new, keep=True)


def test_what_is_let_go_of_is_used_again():
    memory.release()
    x = kept(2**20)
    place = x.data_ptr()
    part = x[5:]
    del x
    assert kept(2**20).data_ptr() != place  # a part of it is still there
    del part
    gc.collect()
    assert kept(2**20).data_ptr() == place
    assert kept(2**20 - 2**18).data_ptr() == place  # a little less
    assert kept(2**20 + 1).data_ptr() != place


def test_without_training_little_is_kept_and_nothing_of_trainings_is_taken():
    memory.release()
    x = kept(2**20)
    place = x.data_ptr()
    del x
    assert memory.new(2**20).data_ptr() != place
    small, large = memory.new(2**20), memory.new(2**23)
    place = small.data_ptr()
    del small, large
    assert memory.new(2**20).data_ptr() == place
    tensors = [memory.new(2**20) for _ in range(6)]
    del tensors
    assert sum(map(len, memory._kept[False].pages)) == memory.MOST_KEPT_IDLE
    memory.release()


def test_of_what_is_kept_the_smallest_that_fits():
    memory.release()
    large, small = kept(3 * 2**19), kept(2**20)
    places = large.data_ptr(), small.data_ptr()
    del large, small
    assert kept(2**20 - 5).data_ptr() == places[1]
    assert kept(2**20 + 5).data_ptr() == places[0]
    assert kept(2**18 + 2**19).data_ptr() == places[1]
    assert kept(2**19).data_ptr() not in places  # both would be twice as large and more


def test_what_is_kept_is_bounded_and_the_oldest_goes(monkeypatch):
    memory.release()
    monkeypatch.setattr(memory._kept[True], "most", 2**24)
    tensors = [kept(i * 2**19) for i in (1, 2, 3, 4)]  # as many huge pages
    while tensors:
        del tensors[0]
    assert [len(pages) // 2**21 for pages in memory._kept[True].pages] == [3, 4]  # of eight that there may be
    large = kept(2**23)
    del large
    assert len(memory._kept[True].pages) == 2  # too large to be kept, and drives nothing out
    memory.release()
    assert memory._kept[True].pages == []


def test_threads_do_not_get_the_same_memory():
    def fill(number: int) -> bool:
        for _ in range(50):
            x = kept(2**19).fill_(number)
            if not (x == number).all():
                return False
        return True

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(fill, range(4)))


def test_kernels_do_not_count_on_zeros():
    """What was there before is in memory that is used again."""
    torch.manual_seed(0)
    u, delta = (torch.randn(1, 64, 2**14).requires_grad_() for _ in range(2))
    A = -torch.rand(64, 4)
    B, C = (torch.randn(1, 4, 2**14).requires_grad_() for _ in range(2))

    def run() -> list[torch.Tensor]:
        y = selective_scan(u, delta, A, B, C, delta_softplus=True, backend="cpp")
        return [y.detach(), *torch.autograd.grad(y.square().sum(), (u, delta, B, C))]

    memory.release()
    expected = [x.clone() for x in run()]
    poisoned = [kept(*u.shape).fill_(float("nan")) for _ in range(6)]
    del poisoned
    for got, wanted in zip(run(), expected):
        assert torch.equal(got, wanted)
