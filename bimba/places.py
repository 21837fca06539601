"""Where this code lies, and where what it makes goes: in a checkout, or installed. Without torch.

``bimba/scripts`` holds ``train.py``, ``evaluate.py`` and ``conf/``. In a checkout these are links to the real ones at
the top, in a wheel they are the files themselves.
"""

from __future__ import annotations

from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent / "scripts"
CONF = SCRIPTS / "conf"


def default_root() -> Path:
    """The folder of ``data/`` and ``outputs/`` without ``$BIMBA_ROOT``: the checkout, or else the current one."""
    checkout = SCRIPTS.parents[1]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def command_of(script: Path) -> tuple[str, str]:
    """The first two words of the command that runs a script: ``python train.py``, or ``bimba train``."""
    return ("bimba", script.stem) if script.parent == SCRIPTS else ("python", script.name)
