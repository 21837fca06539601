"""One process of two of which the second fails and stays, so that nothing but word of it can end the first.

    python -m tests.training.ending_program RANK PORT

The first one stands in an exchange with the second, as it would with NCCL when that one is gone.
"""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.plugins.environments import TorchElasticEnvironment

from bimba.training import together

together.POLL_S = 0.1


def run(rank: int, port: str) -> None:
    together.GRACE_S = 0.5 if rank == 0 else 300.0
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=str(rank), WORLD_SIZE="2")
    strategy = SimpleNamespace(cluster_environment=TorchElasticEnvironment())
    trainer: Any = SimpleNamespace(
        world_size=2, strategy=strategy, local_rank=rank, global_rank=rank, is_global_zero=rank == 0, interrupted=False
    )
    torch.distributed.init_process_group("gloo")
    try:
        with together.ending_together(trainer):
            if rank == 1:
                raise ValueError("only here")
            torch.distributed.barrier()
    except together.Failed as failed:
        print(failed.error, failed.status, flush=True)
        os.read(0, 1)  # until the test lets go
        os._exit(failed.status)


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2])
