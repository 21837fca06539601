"""Tokens on disk: what comes out is what went in, or nothing."""

from __future__ import annotations

import logging
import os
import time

import pytest
import torch

from bimba.inference.store import TokenStore
from bimba.types import BimbaError

TOKENS = torch.arange(12, dtype=torch.bfloat16).reshape(3, 4)


def file_size(store) -> int:
    store.put("probe", TOKENS, False)
    path = store.folder / "probe.safetensors"
    size = path.stat().st_size
    path.unlink()
    return size


@pytest.mark.parametrize("is_short", [True, False])
def test_tokens_come_back_as_they_were(tmp_path, is_short):
    TokenStore(tmp_path).put("a", TOKENS, is_short)
    tokens, short = TokenStore(tmp_path).get("a")
    assert torch.equal(tokens, TOKENS)
    assert tokens.dtype == TOKENS.dtype
    assert short is is_short
    assert TokenStore(tmp_path).get("b") is None
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_least_recently_used_goes_first(tmp_path):
    store = TokenStore(tmp_path)
    store.max_bytes = int(3.5 * file_size(store))
    for age, name in enumerate("cba"):
        store.put(name, TOKENS, False)
        os.utime(tmp_path / f"{name}.safetensors", (1000 + age, 1000 + age))
    assert store.get("c") is not None  # used now
    store.put("d", TOKENS, False)
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["a", "c", "d"]


def test_what_is_larger_than_the_whole_store_is_not_kept(tmp_path):
    store = TokenStore(tmp_path, max_bytes=TOKENS.nbytes - 1)
    store.put("a", TOKENS, False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\x10" * 40])
def test_a_damaged_file_is_as_if_not_there(tmp_path, content, caplog):
    store = TokenStore(tmp_path)
    (tmp_path / "a.safetensors").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert store.get("a") is None
    assert "a.safetensors cannot be read" in caplog.text
    store.put("a", TOKENS, False)
    assert torch.equal(store.get("a")[0], TOKENS)


def test_what_killed_processes_left_is_removed_and_what_is_being_written_is_not(tmp_path):
    (tmp_path / "old.partial").write_bytes(b"x")
    os.utime(tmp_path / "old.partial", (time.time() - 7200,) * 2)
    (tmp_path / "new.partial").write_bytes(b"x")
    TokenStore(tmp_path).put("a", TOKENS, False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "new.partial"]


def test_a_full_disk_is_reported_and_does_no_harm(tmp_path, monkeypatch, caplog):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bimba.inference.store.save_file", full)
    with caplog.at_level(logging.WARNING):
        TokenStore(tmp_path).put("a", TOKENS, False)
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BimbaError, match="cannot hold tokens"):
        TokenStore(tmp_path / "file" / "store")
