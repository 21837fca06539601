import pytest
import torch

from bimba.data.tokenize import IGNORE_INDEX
from bimba.training import breakdown
from bimba.training.breakdown import LossBySource, loss_by_sample
from bimba.training.loss import score
from tests.training.fakes import FakeData, read_metrics, tiny_module, tiny_trainer

SOURCES = ["films", "needle", "films", ""]
MODALITIES = ["video", "video", "text", "video"]
LABELS = {"sources": SOURCES, "modalities": MODALITIES}


class Labelled(FakeData):
    """Four samples in a batch, of which each has a source and a modality; or batches without these keys."""

    def __init__(self, processor, labels=LABELS, **data):
        super().__init__(processor, **{"length": 4, "batch_size": 4, **data})
        self.labels = labels

    def train_dataloader(self):
        loader = super().train_dataloader()
        bare = loader.collate_fn

        def label(samples):
            batch = {key: value for key, value in bare(samples).items() if key not in ("sources", "modalities")}
            return {**batch, **self.labels} if "input_ids" in batch else batch

        loader.collate_fn = label
        return loader


def test_the_losses_of_samples_add_up_to_the_loss():
    torch.manual_seed(0)
    logits, labels = torch.randn(3, 6, 11), torch.randint(11, (3, 6))
    labels[0, :4] = labels[1, 2:] = IGNORE_INDEX
    losses, tokens = loss_by_sample(score(logits, labels, lambda states: states), 3)
    assert tokens.tolist() == [2, 1, 5]
    for sample in range(3):
        expected = torch.nn.functional.cross_entropy(logits[sample, :-1], labels[sample, 1:], reduction="sum")
        assert losses[sample].item() == pytest.approx(expected.item(), rel=1e-5)


def fit(tmp_path, steps, callback, **data):
    module = tiny_module(lr=0.0)  # every step has the same losses
    labelled = Labelled(module.processor, **data)
    tiny_trainer(tmp_path, steps, [callback]).fit(module, labelled)
    return module, next(iter(labelled.train_dataloader()))


def test_each_source_and_modality_has_its_mean_over_tokens(tmp_path):
    module, batch = fit(tmp_path, 4, LossBySource(every_n_steps=2))
    inputs = {key: value for key, value in batch.items() if key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits = module.model(**inputs, pixel_values_videos=batch["pixel_values_videos"]).logits
    losses, tokens = loss_by_sample(score(logits, batch["labels"], lambda states: states), len(logits))
    metrics = read_metrics(tmp_path)
    for prefix, names in (("loss_by_source", SOURCES), ("loss_by_modality", MODALITIES)):
        for name in set(names):
            mine = torch.tensor([other == name for other in names])
            expected = (losses[mine].sum() / tokens[mine].sum()).item()
            assert metrics[f"{prefix}/{name or 'unknown'}"] == pytest.approx([expected] * 2, rel=1e-5)


def test_a_batch_of_bad_samples_counts_for_nothing(tmp_path):
    fit(tmp_path, 2, LossBySource(every_n_steps=2), length=8, bad=range(4, 8))
    assert len(read_metrics(tmp_path)["loss_by_source/films"]) == 1


def test_batches_without_labels_are_not_reported(tmp_path):
    fit(tmp_path, 2, LossBySource(every_n_steps=1), labels={})
    assert not [key for key in read_metrics(tmp_path) if key.startswith("loss_by")]


def test_ranks_may_have_different_sources():
    ranks = [{"a": (2.0, 1), "b": (6.0, 2)}, {"b": (3.0, 1), "c": (0.0, 0)}]
    assert breakdown._means(ranks) == {"a": 2.0, "b": 3.0}


def test_the_hook_goes_when_the_run_ends(tmp_path):
    module, _ = fit(tmp_path, 1, LossBySource(every_n_steps=1))
    assert not module._forward_hooks


def test_null_is_never(tmp_path):
    fit(tmp_path, 2, LossBySource(every_n_steps=None))
    assert not [key for key in read_metrics(tmp_path) if key.startswith("loss_by")]
