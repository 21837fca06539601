"""How the folder of a cell is called: by what differs between the cells, such as ``compressor=mamba,seed=1``."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

LENGTH = 120  # bytes; a file name may have 255, paths on some systems hardly more
_EXCLUDED = "hydra.job.config.override_dirname.exclude_keys"  # Hydra's own key for this


def cell_folder(overrides: Sequence[str], shared: Iterable[str] = ()) -> str:
    """A file name for the cell of a sweep. Cells that differ in overrides have different names.

    Args:
        overrides: of the cell, as on the command line.
        shared: keys and groups that are the same in all cells, and are left out.
    """
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    without = set(shared)
    chosen = [one for one in parsed if one.key_or_group not in without] or parsed
    last = Counter(_last_name(one.key_or_group) for one in chosen)
    parts, is_exact = [], True
    for one in chosen:
        short = _last_name(one.key_or_group)
        key = short if last[short] == 1 else one.key_or_group
        text = f"{key}={one.get_value_element_as_str()}" if not one.is_delete() else f"without {key}"
        part = re.sub(r"[^\w.,=+-]+", "_", text)
        is_exact = is_exact and part == text
        parts.append(part)
    name = ",".join(parts) or "defaults"
    if is_exact and len(name.encode()) <= LENGTH:
        return name
    mark = hashlib.sha256("\n".join(one.input_line or "" for one in chosen).encode()).hexdigest()[:8]
    shortened = name.encode()[:LENGTH].decode(errors="ignore")  # without half a letter at its end
    return f"{shortened}-{mark}"


def _last_name(key: str) -> str:
    return re.split(r"[./]", key)[-1]


class NameCells(Callback):
    """Finds out at the start of a sweep which keys are the same in all cells, for hydra.sweep.subdir.

    Hydra composes each cell from the sweep's own overrides of ``hydra``, to which this adds one.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        shared = [one.key_or_group for one in overrides if not one.is_sweep_override()]
        with read_write(config.hydra.overrides), open_dict(config.hydra.overrides):
            config.hydra.overrides.hydra.append(f"{_EXCLUDED}={OmegaConf.create(shared)}")


# Here, so that it is known wherever a job of a sweep is unpickled: train.py's main refers to this package.
OmegaConf.register_new_resolver("cell_folder", cell_folder, replace=True)
