"""What a run was: its command, what its configuration changes, versions, and what answering took."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bimba.places import command_of
from bimba.report.doctor import OPTIONAL, REQUIRED

if TYPE_CHECKING:
    from omegaconf import DictConfig

Change = tuple[str, Any, Any]  # key, default, value

PACKAGES = ("bimba", *REQUIRED, "datasets", *OPTIONAL)
WORK_SECONDS = ("wait_s", "encode_s", "answer_s")


def command() -> str:
    """The command line of this process, as a shell would take it."""
    return shlex.join([*command_of(Path(sys.argv[0])), *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Python, the platform, and the packages that are there."""
    found = {"python": f"{platform.python_version()} on {platform.platform()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: str) -> str:
    """``cuda:0 (NVIDIA ...)``, or the processor."""
    import torch

    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"{device} ({torch.get_num_threads()} threads)"


def changed_settings(config: DictConfig) -> list[Change]:
    """What the running Hydra job has not as in ``conf/``: other files of it, and other values than these hold.

    Args:
        config: as composed, before interpolations are resolved.
    """
    from hydra import compose
    from hydra.core.hydra_config import HydraConfig

    job = HydraConfig.get()
    default = compose(job.job.config_name, return_hydra_config=True).hydra.runtime.choices
    chosen = {group: name for group, name in job.runtime.choices.items() if name != default.get(group)}
    plain = compose(job.job.config_name, [f"{group}={_word(name)}" for group, name in chosen.items()])
    return [
        *((group, default.get(group), name) for group, name in chosen.items()),
        *changes(_keys(plain), _keys(config)),
    ]


def changes(defaults: Mapping[str, Any], config: Mapping[str, Any]) -> list[Change]:
    """Key, default and value of each setting that is not the default, nested keys with dots; "(none)": not there."""
    before, after = flat(defaults), flat(config)
    return [
        (key, before.get(key, "(none)"), after.get(key, "(none)"))
        for key in dict.fromkeys([*before, *after])
        if before.get(key, "(none)") != after.get(key, "(none)")
    ]


def throughput(works: Sequence[Mapping[str, Any]], resumed: int) -> dict[str, float | int | None]:
    """What answering took, over the processes of a run.

    Args:
        works: of each process its ``bimba.inference.schedule.Work`` as a dictionary.
        resumed: answers that were in the journal.

    Returns:
        The counts and seconds of all together; ``wall_s``, the seconds of the slowest process; per second of that
        videos and questions; and ``wait_share``, the part of all processes' time in which a model waited for a video.
        Rates are None where nothing was answered.
    """
    names = ("decoded", "stored", "cached", "answered", *WORK_SECONDS)
    total = {name: sum(work[name] for work in works) for name in names}
    wall_s = max((sum(work[name] for name in WORK_SECONDS) for work in works), default=0.0)
    busy_s = sum(total[name] for name in WORK_SECONDS)
    return {
        "processes": len(works),
        **total,
        "resumed": resumed,
        "wall_s": wall_s,
        "videos_per_s": (total["decoded"] + total["stored"]) / wall_s if wall_s else None,
        "questions_per_s": total["answered"] / wall_s if wall_s else None,
        "wait_share": total["wait_s"] / busy_s if busy_s else None,
    }


def _word(name: str | None) -> str:
    return "null" if name is None else name


def _keys(config: DictConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(config, resolve=False)
    return values


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Values by their keys, nested keys with dots; a list is one value."""
    if isinstance(node, Mapping) and node:
        return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): node}
