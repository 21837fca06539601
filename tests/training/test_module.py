import pytest
import torch

from bimba.data.tokenize import IGNORE_INDEX
from bimba.training.module import answer_window
from bimba.training.trainable import part_of
from bimba.types import BadSample, BimbaError
from tests.training.fakes import LORA, FakeData, read_metrics, tiny_module, tiny_trainer

PARTS = ("vision_tower", "projector", "image_newline", "language_model")


def first_batch(module):
    return next(iter(FakeData(module.processor, length=2).train_dataloader()))


@pytest.mark.parametrize(("supervised", "window"), [([7], 2), ([5], 4), ([3, 7], 6), ([0], 8), ([1], 8)])
def test_answer_window_reaches_back_to_the_position_before_the_first_answer_token(supervised, window):
    labels = torch.full((2, 8), IGNORE_INDEX)
    labels[0, supervised] = 1
    labels[1, 7] = 1
    assert answer_window(labels) == window


def test_a_batch_without_answers_is_an_error():
    with pytest.raises(BimbaError, match="no supervised token"):
        answer_window(torch.full((2, 8), IGNORE_INDEX))


def test_the_loss_on_the_answer_window_is_the_models_loss_and_so_are_the_gradients():
    module = tiny_module()
    batch = first_batch(module)
    inputs = {key: value for key, value in batch.items() if key != "bad_samples"}
    whole = module.model(**inputs).loss
    whole.backward()
    expected = {name: p.grad.clone() for name, p in module.model.named_parameters() if p.grad is not None}
    module.zero_grad()
    windowed, _, _ = module(batch)
    windowed.backward()
    assert windowed.item() == pytest.approx(whole.item(), rel=1e-6)
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

    def right_about_the_end_only(input_ids, labels, logits_to_keep, **_):
        logits = torch.zeros(*labels.shape, vocabulary)
        logits[..., end] = 1.0  # always predicts <|im_end|>: right for one of the two answer tokens
        return type("Output", (), {"loss": torch.tensor(1.5), "logits": logits})()

    module.model.forward = right_about_the_end_only
    (results,) = tiny_trainer(tmp_path, max_steps=1, callbacks=[]).validate(
        module, FakeData(module.processor), verbose=False
    )
    assert results == pytest.approx({"val/loss": 1.5, "val/accuracy": 0.5, "val/exact_answers": 0.0})


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
    assert torch.isfinite(module(moved)[0])


def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path):
    module = tiny_module()
    with torch.no_grad():
        module.model.projector[0].weight.fill_(float("nan"))
    with pytest.raises(BimbaError, match="The loss is nan at step 0"):
        tiny_trainer(tmp_path, max_steps=1, callbacks=[]).fit(module, FakeData(module.processor))


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
        parallel(batch)[0].backward()
        if cut_off:
            parallel(batch)[0].backward()
        else:
            with pytest.raises(RuntimeError, match="not used in producing loss"):
                parallel(batch)
    finally:
        torch.distributed.destroy_process_group()
    for name, parameter in module.model.named_parameters():
        reached = parameter.requires_grad and part_of(name) != "vision_lora"
        assert (parameter.grad is not None) == reached, name
