"""``bimba train`` and ``bimba evaluate``: ``train.py`` and ``evaluate.py`` wherever BIMBA is installed."""

from __future__ import annotations

import argparse
import os
import sys

from bimba.cli.common import Commands
from bimba.places import SCRIPTS


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    for name, what in (("train", "train a model"), ("evaluate", "score a checkpoint with the lmms-eval harness")):
        # No word begins with the prefix, so that all arguments, --help and -m too, are Hydra's.
        script = commands.add_parser(
            name, help=f"{what}: key=value, --help lists them", prefix_chars="\0", add_help=False
        )
        script.add_argument("arguments", nargs="*")
        script.set_defaults(run=run)
    return []  # they have no options of ours


def run(arguments: argparse.Namespace) -> int:
    """Becomes the script: processes that Lightning or a sweep starts are then started as by ``python train.py``."""
    script = SCRIPTS / f"{arguments.command}.py"
    os.execv(sys.executable, [sys.executable, str(script), *arguments.arguments])
