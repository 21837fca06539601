"""What the machine lacks: a compiler, room on its disk, a key, a package, the right version of one."""

from __future__ import annotations

import errno
import importlib.metadata
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bimba import cli
from bimba.types import BimbaError, first_line, memory_error
from tests.errors.case import Case, check_said
from tests.errors.workshop import ROOT

_ASK = ["ask", "clip.mp4", "Who?", "--checkpoint", "scanning", "--device", "cpu", "--max-new-tokens", "2"]


def _full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")


def test_without_a_compiler_it_answers_all_the_same_and_says_so_once(workshop, tmp_path):
    """In a process of its own: what was compiled before is kept in this one."""
    code = "import sys; from bimba.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PATH": "/nowhere", "CXX": "", "BIMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, *_ASK[:2], "Who?", *_ASK[2:]],  # two questions
        cwd=workshop,
        env={**environment, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("selective_scan: backend 'cpp' passed over: there is no C++ compiler here") == 1
    assert "install one, such as Debian's package g++" in done.stderr


def test_a_cache_folder_that_cannot_be_written_to_is_passed_over(caplog, tmp_path, monkeypatch):
    from bimba.ops import extension

    monkeypatch.setenv("BIMBA_CACHE_DIR", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    with caplog.at_level(logging.INFO):
        assert extension._writable(extension._cache_folder(), Path("a.lock")).is_dir()
    check_said(caplog.text, [f"The cache folder {tmp_path / 'file'} cannot be written to", "compiled code goes to"])


def test_a_full_disk_while_a_checkpoint_is_converted_leaves_nothing_behind(refused, monkeypatch):
    import bimba.checkpoint.convert  # noqa: F401

    monkeypatch.setattr(sys.modules["bimba.checkpoint.convert"], "save_file", _full)  # whose name a function has, too
    says = ["could not be written: No space left on device", "What was there before is unchanged", "has room"]
    refused(Case("full", ["convert", "good", "new", "--to", "bimba"], says))


def test_a_full_disk_while_a_model_is_saved_keeps_the_older_one(monkeypatch, tmp_path):
    from bimba.checkpoint import load_pretrained, save_pretrained

    model, processor = load_pretrained("good")
    save_pretrained(model, processor, tmp_path / "model")
    before = (tmp_path / "model/model.safetensors").read_bytes()
    monkeypatch.setattr(type(model), "save_pretrained", _full)
    with pytest.raises(BimbaError) as caught:
        save_pretrained(model, processor, tmp_path / "model")
    check_said(str(caught.value), ["No space left on device", "What was there before is unchanged", "has room"])
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_while_training_is_an_error_in_the_log_and_no_end(monkeypatch, tmp_path):
    from bimba.training import checkpointing

    monkeypatch.setattr(checkpointing.torch, "save", _full)
    files = checkpointing.WholeFiles()
    files.save_checkpoint({"global_step": 1}, tmp_path / "step_00000001.ckpt")
    assert files.failure == f"{tmp_path / 'step_00000001.ckpt'} could not be written: the disk is full"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_under_results_keeps_the_answers(tmp_path):
    from bimba.report.files import results_in

    with pytest.raises(BimbaError) as caught, results_in(tmp_path):
        _full()
    says = ["Results cannot be written", "No space left on device", "The answers are kept in", "free some space"]
    check_said(str(caught.value), says)


def test_without_a_key_wandb_is_offline_and_says_how_to_upload(caplog, tmp_path, monkeypatch):
    from bimba.training.loggers import wandb_logger

    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with caplog.at_level(logging.INFO):
        wandb_logger(tmp_path, project="test")
    check_said(caplog.text, ["No Weights & Biases key, so this run is logged offline", "wandb sync"])


@pytest.mark.parametrize("package", ["tensorboard", "trackio"])
def test_a_dashboard_that_is_not_installed(package, monkeypatch):
    from bimba.training.loggers import base

    monkeypatch.setattr(base, "find_spec", lambda name: None)
    with pytest.raises(BimbaError) as caught:
        base.needs(package, package)
    check_said(str(caught.value), [f"logger={package} needs the package {package}", f"pip install {package}", "csv"])


def test_packed_data_without_litdata(monkeypatch):
    from bimba.data import packed

    monkeypatch.setattr(packed, "find_spec", lambda name: None)
    with pytest.raises(BimbaError) as caught:
        packed.check_litdata()
    check_said(str(caught.value), ["litdata", "is not installed", 'pip install "bimba[streaming]"'])


def test_a_video_backend_that_is_not_installed(refused, monkeypatch):
    from bimba.data.video import torchcodec

    monkeypatch.setattr(
        torchcodec, "unavailable", lambda: 'torchcodec is not installed: pip install "bimba[torchcodec]"'
    )
    says = ["'torchcodec' was asked for and cannot run", "pip install"]
    refused(Case("torchcodec", [*_ASK, "--video-backend", "torchcodec"], says))


@pytest.mark.parametrize(
    ("package", "installed"),
    [("transformers", "4.57.1"), ("torch", "2.3.0"), ("lightning", "2.4.0"), ("filelock", "4.0")],
)
def test_another_version_of_a_package(package, installed, monkeypatch):
    from bimba.versions import check_versions

    bounds = ["torch>=2.9", "transformers>=5.8,<5.24", "lightning>=2.6", "filelock>=3.13,<4", 'other>=1; extra == "x"']
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: bounds)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: installed if name == package else real(name))
    bound = next(line for line in bounds if line.startswith(package))
    with pytest.raises(BimbaError) as caught:
        check_versions(package)
    received, _, remedy = str(caught.value).partition("; expected ")
    assert received == f"{package} {installed} is installed"
    name, specifiers = package, set(bound.removeprefix(package).split(","))
    asked, _, command = remedy.partition(": ")
    assert set(asked.removeprefix(name).split(",")) == specifiers
    assert command == f"pip install '{asked}'"


def test_versions_that_are_right_or_unknown_pass(monkeypatch):
    from bimba.versions import check_versions

    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch>=2.9", 'filelock>=99; extra == "x"'])
    check_versions("torch", "filelock", "no-such-package")

    def not_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", not_installed)
    check_versions("torch")


def test_versions_are_looked_at_before_names_are_imported_that_others_do_not_have():
    code = """
import importlib.metadata as metadata
real = metadata.version
metadata.version = lambda name: "4.57.1" if name == "transformers" else real(name)
metadata.requires = lambda name: ["transformers>=5.8"]
import bimba.cli
raise SystemExit(bimba.cli.main(["ask", "clip.mp4", "Who?"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == cli.FAILED
    check_said(done.stderr, ["error: transformers 4.57.1 is installed; expected transformers>=5.8: pip install"])


def test_memory_that_runs_out(refused, monkeypatch):
    def full(*args, **kwargs):
        raise type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried 2 GiB.\nmore")

    monkeypatch.setattr("bimba.inference.engine.VideoQA.encode", full)
    refused(Case("memory", _ASK, ["Memory ran out (CUDA out of memory. Tried 2 GiB)", "Give fewer --frames"]))


def test_what_is_no_shortage_of_memory():
    assert memory_error(RuntimeError("CUDA error: an illegal memory access was encountered"), "") is None


@pytest.mark.parametrize(
    ("error", "line"), [(EOFError(), "EOFError"), (OSError(" \n"), "OSError"), (ValueError("\nno\nway"), "no")]
)
def test_an_error_that_says_nothing_is_called_by_its_type(error, line):
    assert first_line(error) == line


def test_ctrl_c(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("bimba.inference.engine.load_pretrained", interrupt)
    assert cli.main(_ASK) == 130
    check_said(capsys.readouterr().err, ["interrupted"])
