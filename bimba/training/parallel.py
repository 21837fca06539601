"""Training with every weight dealt out over the processes: Lightning's ``ModelParallelStrategy`` with torch's FSDP2.

Each process keeps one part of each weight, of its gradient and of the optimizer's state. A unit (a layer of the vision
tower or of the language model, the projector, the compressor) has its weights whole only while it computes.

A checkpoint to resume from is one file, with whole tensors of what is trained. So the number of processes may change
between two runs, and a run on one device can go on where a sharded one stopped, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all processes.

    Args:
        cpu_offload: parts of the weights, gradients and optimizer state lie in the host's memory, and the optimizer
            steps there.
        timeout_s: how long a process waits for the others before it ends the run.
    """

    def __init__(self, cpu_offload: bool = False, timeout_s: float = 1800.0):
        super().__init__(save_distributed_checkpoint=False, timeout=timedelta(seconds=timeout_s))
        self.cpu_offload = cpu_offload

    def setup_environment(self) -> None:
        if self.cpu_offload and self.root_device.type == "cuda":
            # Parts that lie in the host's memory are exchanged there, too: norms of gradients, parts of a checkpoint.
            self._process_group_backend = "cpu:gloo,cuda:nccl"
        # Lightning's own default, "auto", would make the processes of a machine share each matrix product instead.
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()

    @property
    def mesh(self) -> DeviceMesh:
        """All processes in a row."""
        return self.device_mesh["data_parallel"]

    def model_to_device(self) -> None:
        if not self.cpu_offload:
            super().model_to_device()
            return
        module: Any = self.lightning_module
        for buffer in module.buffers():
            buffer.data = buffer.data.to(self.root_device)

    # -- checkpoints: whole tensors, one at a time ---------------------------------------------------------------

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What ``BimbaModule.names_to_save`` names, whole, on the first process; nothing on the others."""
        module: Any = self.lightning_module
        wanted = module.names_to_save()
        return self._gathered({name: tensor for name, tensor in module.state_dict().items() if name in wanted})

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """As the state dict of an optimizer over whole tensors, on the first process; nothing on the others."""
        if isinstance(optimizer, LightningOptimizer):
            optimizer = optimizer.optimizer
        state = optimizer.state_dict()
        return self._gathered({"state": state["state"], "param_groups": state["param_groups"]})

    def _gathered(self, tree: Any) -> Any:
        if isinstance(tree, Mapping):
            items = {key: self._gathered(value) for key, value in tree.items()}
            return items if self.is_global_zero else {}
        if isinstance(tree, Tensor):
            tensor = whole(tree)
            return tensor.cpu() if self.is_global_zero else None
        return tree

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads the file, mapped into memory: each process then takes its part of each tensor."""
        path = Path(self.broadcast(checkpoint_path))
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=weights_only)
        return checkpoint

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Copies what the checkpoint holds; ``BimbaModule.on_load_checkpoint`` has compared the names."""
        module: Any = self.lightning_module
        saved = checkpoint["state_dict"]
        with torch.no_grad():
            for name, tensor in module.state_dict().items():
                if name in saved:
                    local(tensor).copy_(part_like(saved[name], tensor))

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                number: {key: dealt(value, parameters[number]) for key, value in of_one.items()}
                for number, of_one in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": state})


def deal_out(module: Any, strategy: ShardedStrategy, precision: str) -> None:
    """Deals out the weights of a ``BimbaModule``, unit by unit; meta tensors stay meta tensors.

    Args:
        precision: of the trainer. With "bf16-mixed", units other than the compressor have their weights whole in
            bfloat16, and gradients are summed in float32; the parts that the optimizer changes stay as they are,
            float32. The compressor's are whole in their own type: rounding A_log changes what a scan remembers.
    """
    half = precision == "bf16-mixed"
    rounded = MixedPrecisionPolicy(torch.bfloat16 if half else None, torch.float32)
    as_they_are = MixedPrecisionPolicy(None, torch.float32)
    options: dict[str, Any] = {
        "mesh": strategy.mesh,
        "offload_policy": _offload_policy(strategy),
        "reshard_after_forward": True,
    }
    for unit in units(module.model):
        fully_shard(unit, mp_policy=as_they_are if unit is module.model.compressor else rounded, **options)
    fully_shard(module, mp_policy=rounded, **options)  # the rest: embeddings, norms, the head


def _offload_policy(strategy: ShardedStrategy) -> OffloadPolicy:
    if not strategy.cpu_offload:
        return OffloadPolicy()
    return CPUOffloadPolicy(pin_memory=strategy.root_device.type == "cuda")  # pages are pinned for a GPU only


def units(model: Any) -> Iterator[nn.Module]:
    """The parts of a model whose weights are whole together."""
    yield from model.vision_tower.encoder.layers
    yield model.projector
    if model.compressor is not None and any(True for _ in model.compressor.parameters()):
        yield model.compressor
    yield from model.language_model.model.layers


def whole(tensor: Tensor) -> Tensor:
    """All parts of a tensor; every process must ask for the same ones in the same order."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def part_like(full: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process has of ``like``."""
    if not isinstance(like, DTensor):
        return full
    full = full.to(like.device_mesh.device_type)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None).to_local()


def dealt(value: Any, parameter: Tensor) -> Any:
    """A tensor of the optimizer's state as its parameter is dealt out; counters stay as they are."""
    if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    own = part_like(value, parameter).clone().to(parameter.to_local().device)
    return DTensor.from_local(
        own, parameter.device_mesh, parameter.placements, run_check=False, shape=value.shape, stride=value.stride()
    )
