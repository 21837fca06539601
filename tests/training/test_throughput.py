import pytest
from lightning.pytorch.profilers import SimpleProfiler

from bimba.training.flops import Work, count_flops
from bimba.training.throughput import FetchTimer, Throughput
from tests.training.fakes import NUM_FRAMES, FakeData, read_metrics, tiny_module, tiny_trainer


def fit(tmp_path, steps=4, callback=None, **data):
    module = tiny_module()
    callback = callback or Throughput(every_n_steps=2)
    trainer = tiny_trainer(tmp_path, steps, [callback])
    trainer.fit(module, FakeData(module.processor, **data))
    return module, trainer, read_metrics(tmp_path)


def test_rates_are_what_went_through_by_one_and_the_same_time(tmp_path):
    module, _, metrics = fit(tmp_path)
    batch = next(iter(FakeData(module.processor).train_dataloader()))
    lengths = batch["attention_mask"].sum(1).tolist() * 2
    learned = 2 * int((batch["labels"] != -100).sum())
    flops = count_flops(module.model, Work(lengths, learned, [NUM_FRAMES] * 4))
    counted = {
        "tokens": sum(lengths),
        "learned_tokens": learned,
        "samples": 4,
        "videos": 4,
        "frames": 16,
        "patch_tokens": 16 * module.model.config.patch_grid**2,
        "flops": flops,
    }
    seconds = [value / rate for key, value in counted.items() for rate in metrics[f"speed/{key}_per_second"][:1]]
    assert seconds == pytest.approx(seconds[:1] * 7, rel=1e-3)
    assert len(metrics["speed/tokens_per_second"]) == 2
    assert "speed/mfu" not in metrics  # nobody knows the peak of a CPU
    assert "memory/allocated_gib" not in metrics


def test_mfu_is_the_share_of_the_peak_that_is_given(tmp_path):
    _, _, metrics = fit(tmp_path, callback=Throughput(2, peak_flops=1e9))
    expected = [rate / 1e9 for rate in metrics["speed/flops_per_second"]]
    assert metrics["speed/mfu"] == pytest.approx(expected, rel=1e-6)


def test_bad_samples_are_counted_since_the_start(tmp_path):
    _, _, metrics = fit(tmp_path, bad=[1, 6])
    assert metrics["data/bad_samples"] == [1.0, 2.0]


class Clock:
    """A clock that only moves when it is told to."""

    now = 0.0

    def pass_s(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("bimba.training.throughput.perf_counter", lambda: clock.now)
    return clock


def test_the_wait_for_data_is_apart_from_the_step_and_from_the_rest(tmp_path, clock):
    module = tiny_module()
    data = FakeData(module.processor)
    loader, step = data.train_dataloader, module.training_step

    def slow_loader():
        for batch in loader():
            clock.pass_s(1.0)
            yield batch

    def slow_step(*arguments):
        clock.pass_s(3.0)
        return step(*arguments)

    data.train_dataloader, module.training_step = slow_loader, slow_step
    module.on_validation_start = lambda: clock.pass_s(4.0)
    trainer = tiny_trainer(tmp_path, 4, [Throughput(2)], val_check_interval=1, limit_val_batches=1)
    trainer.fit(module, data)
    metrics = read_metrics(tmp_path)
    assert metrics["time/data_wait_percent"][0] == pytest.approx(100 * 2 / 8)
    assert metrics["speed/samples_per_second"][0] == pytest.approx(4 / 8)
    assert metrics["time/other_percent"][0] == pytest.approx(100 * 4 / 12)


def test_a_profiler_of_the_users_goes_on_working(tmp_path):
    module = tiny_module()
    profiler = SimpleProfiler()
    trainer = tiny_trainer(tmp_path, 2, [Throughput(1)], profiler=profiler)
    trainer.fit(module, FakeData(module.processor))
    assert trainer.profiler is profiler
    fetches = [durations for name, durations in profiler.recorded_durations.items() if name.endswith(FetchTimer.ACTION)]
    assert len(fetches) == 1 and len(fetches[0]) >= 2


def test_null_is_never(tmp_path):
    _, trainer, metrics = fit(tmp_path, callback=Throughput(None))
    assert not [key for key in metrics if key.startswith(("speed", "time"))]
    assert not isinstance(trainer.profiler, FetchTimer)
