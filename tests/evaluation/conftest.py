from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # tests/tiny_checkpoint.py
sys.path.insert(0, str(Path(__file__).resolve().parent))  # the modules beside this one

from hub_stand_in import TOKEN, Hub
from replicas import OURS, STOCK, Run, write_hub, write_vnbench

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """``lmms-eval --model bimba`` on the suite and on stock tasks, from an empty HF_HOME and the stand-in hub."""
    root = tmp_path_factory.mktemp("evaluation")
    home, output = root / "home", root / "output"
    write_hub(root / "hub")
    write_vnbench(home / "vnbench")
    with Hub(root / "hub", gated=("longvideobench/LongVideoBench",)) as hub:
        command = [
            str(Path(sys.executable).parent / "lmms-eval"),
            *(
                "--model",
                "bimba",
                "--model_args",
                f"pretrained=bimba-tiny,device=cpu,num_frames=4,journal={root}/journal",
            ),
            *("--tasks", ",".join([*OURS, *(f"{task}_choose" for task in OURS), *STOCK])),
            *("--batch_size", "1", "--log_samples", "--output_path", str(output), "--verbosity", "DEBUG"),
        ]
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "BIMBA_"))},
            **{"HF_HOME": str(home), "HF_TOKEN": TOKEN, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1"},
            **{"HF_UPDATE_DOWNLOAD_COUNTS": "0"},
            **{name: hub.url for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")},
            **{"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"},
        }
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    return Run(home, output, root / "journal", done.stderr, hub.outside)


@pytest.fixture
def offline(run: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """This process on the prefilled HF_HOME, without a hub."""
    monkeypatch.setenv("HF_HOME", str(run.home))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for name in ("http_proxy", "https_proxy"):  # NExT-QA asks for three nltk packages whenever it is imported
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("BIMBA_VNBENCH_ROOT", "unset by the test")  # so that what evaluate.py sets is undone
    monkeypatch.delenv("BIMBA_VNBENCH_ROOT")
    return run


@pytest.fixture
def evaluate(offline, monkeypatch, tmp_path):
    """Runs ``python evaluate.py ...`` in this process, on the prefilled HF_HOME."""
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
    monkeypatch.delenv("BIMBA_ROOT", raising=False)

    def run_script(*overrides: str) -> dict:
        arguments = ["evaluate.py", f"output_dir={tmp_path}/out", "device=cpu", "num_frames=4", *overrides]
        monkeypatch.setattr(sys, "argv", arguments)
        runpy.run_path(str(REPOSITORY / "evaluate.py"), run_name="__main__")
        return json.loads((tmp_path / "out/summary.json").read_text())

    return run_script
