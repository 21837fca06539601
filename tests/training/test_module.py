import math

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from bimba.data.collate import collate
from bimba.data.tokenize import IGNORE_INDEX, tokenize_conversation
from bimba.training import BimbaModule
from bimba.training.callbacks import SaveCheckpoint
from bimba.training.loss import score
from bimba.training.optim import OptimizerSettings
from bimba.training.trainable import part_of
from bimba.types import BadSample, BimbaError
from tests.training.fakes import LORA, FakeData, read_metrics, tiny_module, tiny_trainer

PARTS = ("vision_tower", "projector", "image_newline", "language_model")


class Unequal(FakeData):
    """As ``FakeData``, with answers of 1 to 7 letters; the videos of ``not_a_number`` are not numbers."""

    def __init__(self, *args, not_a_number=(), **kwargs):
        super().__init__(*args, **kwargs)
        self.not_a_number = not_a_number

    def train_dataloader(self):
        videos, tokenizer = self.train_videos, self.train_videos.processor.tokenizer

        def sample(i):
            turns = [{"from": "human", "value": "<image>\nWhich?"}, {"from": "gpt", "value": "AB"[i % 2] * (i % 7 + 1)}]
            found = {**videos[i], **tokenize_conversation(turns, tokenizer, [videos.processor.num_video_tokens(4)])}
            if i in self.not_a_number:
                found["pixel_values_videos"] = [torch.full_like(found["pixel_values_videos"][0], torch.nan)]
            return found

        starts = range(0, len(videos), self.batch_size)
        groups = [range(start, start + self.batch_size) for start in starts]
        batches = [{**collate([sample(i) for i in g], 0), "ids": [f"number {i}" for i in g]} for g in groups]
        return DataLoader(batches, batch_size=None)  # a plain list would be several loaders to Lightning


def first_batch(module):
    return next(iter(FakeData(module.processor, length=2).train_dataloader()))


def test_a_batch_without_answers_is_an_error(tmp_path):
    class Silent(FakeData):
        def train_dataloader(self):
            batch = next(iter(super().train_dataloader()))
            silent = {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)}
            return DataLoader([silent], batch_size=None)

    module = tiny_module()
    with pytest.raises(BimbaError, match="no supervised token"):
        tiny_trainer(tmp_path, max_steps=1, callbacks=[]).fit(module, Silent(module.processor))


def test_the_loss_is_the_models_loss_and_so_are_the_gradients():
    module = tiny_module()
    batch = first_batch(module)
    inputs = {key: value for key, value in batch.items() if key != "bad_samples"}
    whole = module.model(**inputs).loss
    whole.backward()
    expected = {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}
    module.zero_grad()
    ours = module(batch).losses.mean()
    ours.backward()
    assert ours.item() == pytest.approx(whole.item(), rel=1e-6)
    for name, parameter in module.model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("tuning", "parts", "goal"), [("lora", ("lora", "projector"), 0.97), ("full", PARTS, 0.2)])
def test_training_lowers_the_loss_and_moves_only_what_is_trained(tmp_path, tuning, parts, goal):
    module = tiny_module(tuning, lr=1e-2, schedule="constant")
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    tiny_trainer(tmp_path, max_steps=30, callbacks=[]).fit(module, FakeData(module.processor))
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
    metrics = read_metrics(tmp_path)
    assert len(metrics["train/loss"]) == 30
    assert metrics["train/loss"][-1] < goal * metrics["train/loss"][0]
    assert metrics["train/lr"][0] == pytest.approx(1e-2)
    assert min(metrics["train/tokens_per_second"]) > 0
    norms = [metrics[f"train/grad_norm/{part}"][0] for part in parts]
    assert metrics["train/grad_norm"][0] == pytest.approx(sum(norm**2 for norm in norms) ** 0.5, rel=1e-5)
    assert metrics["val/loss"][-1] < metrics["val/loss"][0]


def test_validation_counts_answer_tokens_and_whole_answers(tmp_path):
    module = tiny_module()
    vocabulary = len(module.processor.tokenizer)
    end = module.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def right_about_the_end_only(states):
        logits = torch.zeros(*states.shape[:-1], vocabulary)
        logits[..., end] = 1.0  # always predicts <|im_end|>: right for one of the two answer tokens
        return logits

    module.model.language_model.lm_head.forward = right_about_the_end_only
    (results,) = tiny_trainer(tmp_path, max_steps=1, callbacks=[]).validate(
        module, FakeData(module.processor), verbose=False
    )
    rest = math.log(vocabulary - 1 + math.e)
    expected = {"val/loss": rest - 0.5, "val/accuracy": 0.5, "val/exact_answers": 0.0}
    assert results == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_bad_samples_only_changes_no_weight(tmp_path):
    module = tiny_module(weight_decay=0.1)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    tiny_trainer(tmp_path, max_steps=1, callbacks=[]).fit(module, FakeData(module.processor, length=2, bad=[0, 1]))
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_bad_samples_beside_good_ones_are_left_out(tmp_path):
    module = tiny_module()
    batch = next(iter(FakeData(module.processor, length=4, batch_size=4, bad=[1, 2]).train_dataloader()))
    assert len(batch["input_ids"]) == 2
    moved = module.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert moved["bad_samples"] == [BadSample(f"{i}.mp4", f"{i}.mp4: truncated") for i in (1, 2)]
    assert torch.isfinite(module(moved).losses).all()


def test_accumulating_two_batches_is_one_step_on_both(tmp_path):
    def weights_after_one_step(batch_size, accumulate):
        module = tiny_module(lr=1e-2)
        trainer = tiny_trainer(tmp_path, max_steps=1, callbacks=[], accumulate_grad_batches=accumulate)
        trainer.fit(module, FakeData(module.processor, length=4, batch_size=batch_size))
        assert trainer.global_step == 1
        return {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}

    at_once, accumulated = weights_after_one_step(4, 1), weights_after_one_step(2, 2)
    for name, weight in at_once.items():
        torch.testing.assert_close(accumulated[name], weight, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_the_loss_is_the_mean_over_all_tokens_of_a_step_for_any_split(tmp_path, batch_size, accumulate):
    module = tiny_module(lr=1e-2)
    data = Unequal(module.processor, length=8, batch_size=batch_size)
    tiny_trainer(tmp_path, max_steps=2, callbacks=[], accumulate_grad_batches=accumulate).fit(module, data)
    expected = tiny_module(lr=1e-2)
    (batch,) = Unequal(expected.processor, length=8, batch_size=8).train_dataloader()
    loss = expected(batch).losses.mean()
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in expected.parameters() if p.grad is not None])
    metrics = read_metrics(tmp_path)
    assert metrics["train/loss"][0] == pytest.approx(loss.item(), rel=1e-5)
    assert metrics["train/grad_norm"][0] == pytest.approx(norm.item(), rel=1e-4)
    assert metrics["train/loss"][1] < metrics["train/loss"][0]


def test_the_original_takes_the_mean_of_the_means_of_batches(tmp_path):
    tiny = tiny_module()
    module = BimbaModule(tiny.model, tiny.processor, OptimizerSettings(lr=1e-2, warmup_ratio=0.0), loss_mean="batches")
    batches = list(Unequal(module.processor, length=4, batch_size=2).train_dataloader())
    torch.stack([module(batch).losses.mean() for batch in batches]).mean().backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    module.zero_grad()
    trainer = tiny_trainer(tmp_path, max_steps=1, callbacks=[], accumulate_grad_batches=2)
    trainer.fit(module, Unequal(module.processor, length=4, batch_size=2))
    assert read_metrics(tmp_path)["train/grad_norm"] == [pytest.approx(norm.item(), rel=1e-5)]


def test_a_step_that_is_not_a_number_is_skipped_and_its_samples_are_named(tmp_path, caplog):
    module = tiny_module(weight_decay=0.1)
    data = Unequal(module.processor, length=4, batch_size=1, not_a_number=[2, 3])
    before = {}

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            before[trainer.global_step] = {n: p.detach().clone() for n, p in module.named_parameters()}

    tiny_trainer(tmp_path, max_steps=6, callbacks=[Watch()]).fit(module, data)
    moved = [
        any(not torch.equal(p, before[step][n]) for n, p in before[step + 1].items() if torch.isfinite(p).all())
        for step in range(1, 6)
    ]
    assert moved == [True, False, False, True, True]
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert "Step 2 is skipped (loss nan" in caplog.text
    assert "Its samples: number 3" in caplog.text
    assert read_metrics(tmp_path)["train/skipped_steps"][-1] == 2


def test_too_many_such_steps_in_a_row_end_the_run(tmp_path):
    module = tiny_module(max_skipped_steps=2)
    data = Unequal(module.processor, length=4, batch_size=2, not_a_number=[0, 1, 2, 3])
    with pytest.raises(BimbaError, match=r"2 steps in a row .* step 1, had .* samples: number 2, number 3"):
        tiny_trainer(tmp_path, max_steps=4, callbacks=[SaveCheckpoint(tmp_path)]).fit(module, data)
    saved = load_file(tmp_path / "checkpoint/model.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in saved.values())


def test_logits_in_pieces_give_the_same_loss_and_gradients():
    torch.manual_seed(0)
    head = torch.nn.Linear(8, 50)
    labels = torch.randint(50, (2, 20)).masked_fill(torch.rand(2, 20) < 0.3, IGNORE_INDEX)
    hidden = torch.randn(2, 20, 8, requires_grad=True)
    at_once = score(hidden, labels, head)
    pieces = score(hidden, labels, head, chunk=7)
    logits = head(hidden)[:, :-1].flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
    parameters = [hidden, head.weight, head.bias]
    gradients = torch.autograd.grad(expected, parameters, retain_graph=True)
    for scores in (at_once, pieces):
        torch.testing.assert_close(scores.losses.sum(), expected)
        for ours, theirs in zip(torch.autograd.grad(scores.losses.sum(), parameters, retain_graph=True), gradients):
            torch.testing.assert_close(ours, theirs)
    assert torch.equal(pieces.right, at_once.right)
    assert torch.equal(pieces.samples, at_once.samples)


def test_without_a_video_the_parts_that_read_videos_get_zeros():
    module = tiny_module(model={"compressor": {"name": "mamba"}})
    batch = first_batch(module)
    text = {**batch, "pixel_values_videos": [], "input_ids": batch["input_ids"].masked_fill(
        batch["input_ids"] == module.processor.video_token_id, 0)}  # fmt: skip
    module(text).losses.sum().backward()
    for name, parameter in module.model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            if part_of(name) in ("projector", "compressor"):
                assert not parameter.grad.any(), name


def test_a_half_precision_base_trains_under_mixed_precision(tmp_path):
    changes = {"dtype": "bfloat16", "compressor": {"name": "mamba"}, "gradient_checkpointing": True}
    module = tiny_module(lr=1e-2, model=changes)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    tiny_trainer(tmp_path, max_steps=3, callbacks=[], precision="bf16-mixed").fit(module, FakeData(module.processor))
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name
        assert parameter.dtype == (torch.float32 if parameter.requires_grad else torch.bfloat16), name


@pytest.mark.parametrize("cut_off", [["vision_lora"], []])
def test_processes_do_not_wait_for_gradients_that_never_come(cut_off, tmp_path):
    lora = {**LORA, "vision_tower": True}
    module = tiny_module(model={"gradient_checkpointing": "reentrant", "lora": lora}, cut_off=cut_off)
    batch = first_batch(module)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(module)
        parallel(batch).losses.mean().backward()
        if cut_off:
            parallel(batch).losses.mean().backward()
        else:
            with pytest.raises(RuntimeError, match="not used in producing loss"):
                parallel(batch)
    finally:
        torch.distributed.destroy_process_group()
    for name, parameter in module.model.named_parameters():
        reached = parameter.requires_grad and part_of(name) != "vision_lora"
        assert (parameter.grad is not None) == reached, name
