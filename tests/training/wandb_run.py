"""What an offline run of Weights & Biases holds, read from its folder with wandb's own reader."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb
from wandb.proto.wandb_internal_pb2 import Record
from wandb.sdk.internal.datastore import DataStore


@dataclass
class WandbRun:
    """The values of each key in order, the configuration, and the run's folder."""

    folder: Path
    values: dict[str, list[Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)


def read_wandb(run_dir: Path) -> WandbRun:
    """The only run below ``run_dir/wandb``, which has to be finished."""
    wandb.teardown()  # finish() does not wait until the last of the file is written
    (file,) = (run_dir / "wandb").glob("offline-run-*/*.wandb")
    run = WandbRun(file.parent)
    store = DataStore()
    store.open_for_scan(str(file))
    while (data := store.scan_data()) is not None:
        record = Record()
        record.ParseFromString(data)
        for item in record.history.item:
            run.values.setdefault("/".join(item.nested_key) or item.key, []).append(json.loads(item.value_json))
        for item in record.config.update:
            run.config[item.key] = json.loads(item.value_json)
    return run
