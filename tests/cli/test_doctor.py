"""``bimba doctor``: what it finds, what it tries out, and what is pasted into a bug report."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest
from as_process import command, environment

from bimba import cli
from bimba.cli import self_test
from bimba.ops.selective_scan import REGISTRY
from bimba.report import doctor
from bimba.types import BimbaError


def examined(capsys) -> tuple[int, dict[str, str]]:
    code = cli.main(["doctor", "--json", "--no-test"])
    return code, json.loads(capsys.readouterr().out)


def test_versions_device_and_backends(monkeypatch, capsys):
    for variable in ("BIMBA_SCAN_BACKEND", "BIMBA_CONV_BACKEND"):
        monkeypatch.delenv(variable, raising=False)
    code, findings = examined(capsys)
    assert code == 0
    assert findings["video: decord"] == findings["video: pyav"] == "ready"
    assert {
        "bimba",
        "python",
        "torch",
        "lmms-eval",
        "cpu",
        "selective_scan: reference",
        "causal_conv1d: pytorch",
    } <= set(findings)
    for op in ("selective_scan", "causal_conv1d"):
        assert sum(name.startswith(op) and "first choice" in state for name, state in findings.items()) == 1
    assert not any(name.startswith("self test") for name in findings)


@pytest.mark.parametrize(
    ("variable", "op", "name"),
    [("BIMBA_SCAN_BACKEND", "selective_scan", "reference"), ("BIMBA_CONV_BACKEND", "causal_conv1d", "pytorch")],
)
def test_which_backend_a_variable_chose(variable, op, name, monkeypatch, capsys):
    monkeypatch.setenv(variable, name)
    code, findings = examined(capsys)
    assert code == 0
    assert findings[f"{op}: {name}"] == f"ready, chosen by {variable}"
    assert not any(what.startswith(op) and "first choice" in state for what, state in findings.items())


@pytest.mark.parametrize(
    ("name", "state"),
    [
        (
            "quick",
            "chosen by BIMBA_SCAN_BACKEND, but no backend is called so; set BIMBA_SCAN_BACKEND to one of: auto, ",
        ),
        ("cpp", "chosen by BIMBA_SCAN_BACKEND, but a test took the compiler away; or unset BIMBA_SCAN_BACKEND"),
    ],
)
def test_a_variable_that_names_what_cannot_run(name, state, monkeypatch, capsys):
    without = replace(REGISTRY.backends["cpp"], unavailable=lambda: "a test took the compiler away")
    monkeypatch.setitem(REGISTRY.backends, "cpp", without)
    monkeypatch.setenv("BIMBA_SCAN_BACKEND", name)
    code, findings = examined(capsys)
    assert code == 1
    assert findings[f"selective_scan: {name}"].startswith(state)
    monkeypatch.setenv("BIMBA_SCAN_BACKEND", "")
    assert examined(capsys)[0] == 0


def test_what_is_missing_is_told_and_nothing_is_tried_then(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "REQUIRED", ("no-such-package",))
    assert cli.main(["doctor", "--json"]) == 1
    findings = json.loads(capsys.readouterr().out)
    assert findings["no-such-package"].startswith("missing")
    assert not any(name.startswith("self test") for name in findings)
    assert cli.main(["doctor"]) == 1
    assert "Wrong: no-such-package. For a bug report: bimba doctor --report" in capsys.readouterr().out


def test_the_whole_road_is_tried_out():
    done = subprocess.run(command("doctor"), env=environment(), capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("bimba doctor")
    steps = ("write a clip", "decode", "load", "encode", "answer", "scan by cpp", "scan by chunked")
    assert [f"self test: {step}" in done.stdout for step in steps] == [True] * len(steps)
    assert done.stdout.splitlines()[-1] == "Nothing is wrong. For a bug report: bimba doctor --report"


@pytest.fixture
def few_backends(monkeypatch):
    """Triton's interpreter, which the tests switch on, takes long."""
    for name in set(REGISTRY.backends) - {"chunked", "reference"}:
        monkeypatch.delitem(REGISTRY.backends, name)


def test_a_backend_that_is_wrong_is_found(few_backends, monkeypatch):
    chunked = REGISTRY.backends["chunked"]

    def forward(scan, save):
        y, *others = chunked.forward(scan, save)
        return (y * 1.01, *others)

    monkeypatch.setitem(REGISTRY.backends, "chunked", replace(chunked, forward=forward))
    said = []
    found = {finding.what: finding for finding in self_test.self_test(said.append)}
    assert not found["self test: scan by chunked"].ok
    assert "differs from the reference by 1.0e-02 on cpu; expected 1e-04" in found["self test: scan by chunked"].state
    assert found["self test: answer"].ok
    assert said[0] == "write a clip"


def test_a_backend_whose_gradients_are_not_numbers_is_found(few_backends, monkeypatch):
    chunked = REGISTRY.backends["chunked"]

    def backward(*inputs):
        du, *others = chunked.backward(*inputs)
        return (du * float("nan"), *others)

    monkeypatch.setitem(REGISTRY.backends, "chunked", replace(chunked, backward=backward))
    with pytest.raises(BimbaError, match="differs from the reference by nan on cpu"):
        self_test._compare("chunked")


def test_tritons_interpreter_is_tried_on_few_positions(monkeypatch):
    lengths = []

    def reference(scan, save):
        lengths.append(scan.u.shape[2])
        return REGISTRY.backends["reference"].forward(scan, save)

    triton = replace(REGISTRY.backends["reference"], forward=reference)
    monkeypatch.setitem(REGISTRY.backends, "triton", triton)
    monkeypatch.setattr(self_test, "interpreted", lambda: True)
    assert "agrees with the reference" in self_test._compare("triton")
    assert lengths == [72, 72]  # 512 took minutes


def test_a_step_that_breaks_is_told_and_those_behind_it_are_left_out(few_backends, monkeypatch, capsys):
    def broken(*args, **kwargs):
        raise RuntimeError("a codec is missing")

    monkeypatch.setattr(self_test, "read_frames", broken)
    assert cli.main(["doctor", "--report"]) == 1
    report = capsys.readouterr().out
    assert "**wrong:** failed: RuntimeError: a codec is missing" in report
    assert "self test: load" not in report
    assert "self test: scan by chunked | agrees with the reference" in report


def test_the_report_is_markdown_without_the_home_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BIMBA_CACHE_DIR", str(tmp_path / "a|b"))
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert cli.main(["doctor", "--report", "--no-test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "<details><summary>bimba doctor: nothing wrong</summary>"
    assert lines[-1] == "</details>"
    assert "| BIMBA_CACHE_DIR | ~/a\\|b |" in lines
    assert not any("secret" in line or str(tmp_path) in line for line in lines)
    assert all(line.replace("\\|", "").count("|") == 3 for line in lines[2:-2])
