"""``bimba prepare`` and the hub: what is downloaded, and what is said where that cannot be."""

from __future__ import annotations

import shutil

import pytest
from homes import ON_HUB
from hub_stand_in import TOKEN, Hub


def test_what_is_nowhere_is_downloaded(empty, prepare, hub_root, monkeypatch):
    with Hub(hub_root, gated=("longvideobench/LongVideoBench",)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        for name in ON_HUB:
            code, printed, items = prepare(name)
            assert code == 0, items
            assert TOKEN not in printed
        assert hub.outside == []
    assert all(prepare(name)[0] == 0 for name in ON_HUB)  # now that it does not answer any more


def test_only_questions_are_downloaded_where_they_alone_are_missing(home, prepare, hub_root, monkeypatch):
    shutil.rmtree(home / "datasets/lmms-eval___video-mme")
    with Hub(hub_root) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert prepare("videomme")[0] == 0
    assert not list((home / "hub").rglob("*.zip"))


@pytest.mark.parametrize(
    ("token", "who"), [(None, "there is no token"), ("hf_of_someone", "this token's account has no access (yet)")]
)
def test_a_gated_data_set_says_where_to_ask(empty, prepare, hub_root, monkeypatch, token, who):
    with Hub(hub_root, gated=("longvideobench/LongVideoBench",)) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        code, printed, items = prepare("longvideobench")
        page = f"{hub.url}/datasets/longvideobench/LongVideoBench"
    assert code == 1
    (problem,) = items["longvideobench"]["problems"][1].splitlines()
    todo = f"ask for access on {page}, then `hf auth login` or set HF_TOKEN"
    assert problem == f"longvideobench/LongVideoBench is gated and {who}: {todo}"
    assert items["longvideobench"]["token"][0] is (token is not None)
    assert "hf_of_someone" not in printed


def test_a_hub_that_does_not_answer_is_said(empty, prepare):
    code, _, items = prepare("mlvu")
    assert code == 1
    assert "sy1998/MLVU_dev cannot be downloaded (ConnectError: " in items["mlvu"]["problems"][1]


def test_a_token_of_another_home_is_seen(empty, prepare, tmp_path):
    (tmp_path / "user/.cache/huggingface").mkdir(parents=True)
    (tmp_path / "user/.cache/huggingface/token").write_text("hf_secret")
    code, printed, items = prepare("longvideobench", "--dry-run")
    assert code == 1
    ok, state, todo = items["longvideobench"]["token"]
    assert (ok, state) == (False, "none; longvideobench/LongVideoBench is gated")
    assert f"the one in {tmp_path}/user/.cache/huggingface/token is not read with this HF_HOME" in todo
    assert "hf_secret" not in printed
