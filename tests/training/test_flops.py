"""The operations that are counted by formula, against those that torch sees."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bimba.training.flops import Work, count_flops, peak_flops
from bimba.types import BimbaError
from tests.training.fakes import FakeData, tiny_module, tiny_trainer

ATTENTION = {"compressor": {"name": "mamba", "mixer": "attention"}}
OTHERS = [{"compressor": {"name": name}} for name in ("conv", "perceiver", "attention", "pool")]
MAMBA = {"compressor": {"name": "mamba", "num_layers": 2, "scan_backend": "chunked"}}


def batch_and_work(module, num_samples=1):
    batch = next(iter(FakeData(module.processor, length=2, batch_size=num_samples).train_dataloader()))
    learned = int((batch["labels"] != -100).sum())
    videos = [len(video) for video in batch["pixel_values_videos"]]
    return batch, Work(batch["attention_mask"].sum(1).tolist(), learned, videos)


def measured(module, batch, learned, backward):
    """What torch counts of matrix products and attention, with logits where something is learned only."""
    # The backend that is written out in matrix products: of the others, torch counts nothing on a CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        states = module.model(
            **{key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values_videos")},
            logits_to_keep=torch.arange(learned),
            use_cache=False,
        ).logits
        if backward:
            states.sum().backward()
    return counter.get_total_flops()


def causal_half(module, length, backward):
    """What torch counts for the half of the language model's attention that a causal mask takes away."""
    config = module.model.config.text_config
    return 2 * length**2 * config.hidden_size * config.num_hidden_layers * (3 if backward else 1)


@pytest.mark.parametrize("model", [{}, ATTENTION, *OTHERS])
@pytest.mark.parametrize(("tuning", "backward"), [("lora", False), ("lora", True), ("full", True)])
def test_the_formula_counts_what_torch_counts(model, tuning, backward):
    module = tiny_module(tuning, model={"gradient_checkpointing": False, **model})
    batch, work = batch_and_work(module)
    seen = measured(module, batch, work.num_answers, backward) - causal_half(module, work.lengths[0], backward)
    assert count_flops(module.model, work, backward) == pytest.approx(seen, rel=0.02)


def test_the_scan_is_counted_by_its_formula():
    without, module = tiny_module(), tiny_module(model=MAMBA)
    _, work = batch_and_work(module)
    first, last = (layer.mixer for layer in module.model.compressor.layers)
    queries, patches = 4 * 2 * 2, 4 * 4
    lengths = 4 * patches + queries, 2 * patches + queries  # the second layer has every second frame
    D, N, C, R = first.d_inner, first.d_state, 32, first.dt_rank
    reads = lengths[0], queries
    expected = 0.0
    for length, read in zip(lengths, reads):
        per_direction = 2 * length * (D * 4 + D * (R + 2 * N) + R * D) + D * N * (6 * length + 2 * read)
        expected += 2 * C * D * (length + read) + 2 * per_direction + 2 * D * C * read
    found = count_flops(module.model, work, backward=False) - count_flops(without.model, work, backward=False)
    assert found == pytest.approx(expected, rel=1e-9)
    assert last.d_inner == D


def test_work_adds_up():
    module = tiny_module(model=MAMBA)
    both = count_flops(module.model, Work([50, 60], 7, [4, 8], 2))
    apart = count_flops(module.model, Work([50], 3, [4], 2)) + count_flops(module.model, Work([60], 4, [8]))
    assert both == pytest.approx(apart, rel=1e-12)


def test_a_frozen_vision_tower_has_no_backward_pass_and_adapters_there_give_it_one():
    vision = count_flops(tiny_module().model, Work([], 0, [], 3)) - count_flops(
        tiny_module().model, Work([], 0, [], 3), backward=False
    )
    projector = 3 * 16 * 2 * (32 * 32)  # 3 tiles of 16 patches, two square matrices
    assert vision == pytest.approx(projector * 2 + projector)  # weights of both, the input of the second


def test_the_peak_of_a_cpu_is_unknown_unless_it_is_given(tmp_path):
    trainer = tiny_trainer(tmp_path, 1, [])
    assert peak_flops(trainer, None) is None
    assert peak_flops(trainer, 1e12) == 1e12
    with pytest.raises(BimbaError, match="peak_flops is 0"):
        peak_flops(trainer, 0)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16-mixed", torch.bfloat16), ("32-true", torch.float32)])
def test_the_peak_of_a_gpu_is_lightnings_for_the_precision(precision, dtype, monkeypatch):
    class Trainer:
        strategy = type("Strategy", (), {"root_device": torch.device("cuda", 0)})

    Trainer.precision = precision
    asked = []
    monkeypatch.setattr("bimba.training.flops.get_available_flops", lambda *given: asked.append(given) or 5)
    assert peak_flops(Trainer, None) == 5.0
    assert asked == [(torch.device("cuda", 0), dtype)]
    monkeypatch.setattr("bimba.training.flops.get_available_flops", lambda *_: None)
    assert peak_flops(Trainer, None) is None
