"""train.py on LLaVA-Video-178K's layout: videos, folders of frames, images and texts."""

import pytest
import yaml

from bimba.checkpoint import load_pretrained
from tests.data import layout


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    layout.make(folder)
    return folder


SMALL = (
    "data=llava_video_178k",
    "model.config.num_frames=4",
    "model.config.temporal_pooling=1",
    "data.num_workers=0",
    "trainer.max_steps=2",
    "data.global_batch_size=5",
    "data.batch_size=5",
)


class Modalities:
    """Which modalities the batches of a run had."""

    def __init__(self, monkeypatch):
        from bimba.training import BimbaModule

        self.of_batches = []
        step = BimbaModule.training_step

        def noting(module, batch, batch_idx):
            self.of_batches.append(batch["modalities"])
            return step(module, batch, batch_idx)

        monkeypatch.setattr(BimbaModule, "training_step", noting)


def test_two_steps_of_mixed_batches(root, train_config, train_script, monkeypatch, tmp_path):
    seen = Modalities(monkeypatch)
    entries = [
        {"json_path": f"{layout.YOUTUBE}/*_cap_*.json", "sampling_strategy": "first:1"},
        {"json_path": f"{layout.ACADEMIC}/*.json", "sampling_strategy": "end:1"},  # a folder of frames
        {"json_path": "pictures.jsonl", "sampling_strategy": "first:2", "image_folder": "pictures"},
        {"json_path": "texts.json", "sampling_strategy": "random:20%"},
    ]
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({"datasets": entries}))
    cfg = train_config(
        *SMALL, f"data.mixture={tmp_path / 'few.yaml'}", f"data.video_root={root}", f"data.annotation_root={root}"
    )
    trainer = train_script.fit(cfg)
    assert trainer.global_step == 2
    assert [sorted(set(batch)) for batch in seen.of_batches] == [["image", "multi_image", "text", "video"]] * 2
    assert all(parameter.isfinite().all() for parameter in trainer.lightning_module.parameters())
    model, _ = load_pretrained(tmp_path / "checkpoint")
    assert model.config.num_frames == 4


def test_the_published_folders_are_the_default(root, train_config, train_script):
    with pytest.raises(SystemExit) as stop:
        train_script.main(train_config(*SMALL, f"data.video_root={root}"))
    absent = str(stop.value.code)
    assert "1_2_m_academic_v0_1/*.json" in absent
    assert "2_3_m_nextqa/*.json: no such annotation file" in absent
    assert "1_2_m_youtube_v0_1" not in absent  # that one is there
    entries = "[{json_path: '{1_2_m_youtube_v0_1,2_3_m_academic_v0_1}/*.json', sampling_strategy: 'first:50%'}]"
    overrides = (f"data.video_root={root}", f"data.mixture={entries}", "data.global_batch_size=3", "data.batch_size=3")
    assert train_script.fit(train_config(*SMALL, *overrides, "trainer.max_steps=1")).global_step == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.mixture=nowhere.yaml", "error: nowhere.yaml: no such mixture"),
        ("data.mixture=[{json_path: a.json, sampling_strategy: 'first:101%'}]", "at most 100 %"),
        ("data.mixture=[]", "data.mixture: no data sets"),
        ("+data.extra=1", "Nobody reads data.extra; remove it"),
    ],
)
def test_what_the_user_got_wrong_is_one_message(root, train_config, train_script, override, message):
    sound = f"data.mixture={root / 'mixture.yaml'}"
    with pytest.raises(SystemExit) as stop:
        train_script.main(train_config(*SMALL, f"data.video_root={root}", sound, override))
    assert message in stop.value.code
