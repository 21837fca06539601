"""Whether the compressor does something: how fast its scans forget, and whether they change the queries.

Measured in a forward pass of training, on the first video of the batch, by hooks that cost nothing until they are
armed. A scan's state in channel d and entry n shrinks per token by exp(-delta[d] |A[d, n]|), so it remembers for about
1 / (delta[d] |A[d, n]|) tokens. delta changes from token to token; over a stretch of them its mean counts.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from bimba.model.block import MambaBlock, ScanMixer
from bimba.ops import interleave
from bimba.training.reporting import PeriodicCallback, report, summed
from bimba.types import Batch

DIRECTIONS = ("forward", "backward")


class CompressorHealth(PeriodicCallback):
    """Logs ``compressor/...`` (with several layers ``compressor/layer_<i>/...``), means over the ranks with a video.

    ==================================  ================================================================================
    key                                 value
    ==================================  ================================================================================
    delta/<direction>                   mean step size over ``positions`` tokens and all channels
    memory_tokens/<direction>           mean over channels and state entries of 1 / (mean delta * |A|): how many tokens
                                        a state reaches back
    memory_tokens_median/<direction>    its median: the mean is ruled by the slowest entries
    queries_changed                     share of queries whose output differs from their pooled input by more than
                                        ``changed_above`` times the input's norm; 0 at the start of a training
    query_change                        mean of that relative difference
    ==================================  ================================================================================

    Costs, in a step that is reported, the layer's input projection for 7 rows per position: with 512 positions, 6 % of
    the compressor's own for one video of 64 frames.

    Args:
        positions: how many tokens, spread over the sequence, the step sizes are taken of.
        changed_above: when a query counts as changed.
    """

    def __init__(self, every_n_steps: int | None = 50, positions: int = 512, changed_above: float = 0.1):
        super().__init__(every_n_steps)
        self.positions = positions
        self.changed_above = changed_above
        self._is_armed = False
        self._found: dict[str, Tensor] = {}
        self._hooks: list[RemovableHandle] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        compressor: Any = pl_module.model.compressor
        if compressor is None or self.every_n_steps is None:
            return
        self._hooks.append(compressor.register_forward_hook(self._compare_queries))
        blocks = [module for module in compressor.modules() if isinstance(module, MambaBlock)]
        for number, block in enumerate(blocks):
            prefix = f"layer_{number}/" if len(blocks) > 1 else ""

            def hook(module: Any, arguments: Any, keywords: Any, output: Any, prefix: str = prefix) -> None:
                self._measure_scan(module, arguments, prefix)

            self._hooks.append(block.register_forward_hook(hook, with_kwargs=True))

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        # The last batch of a step is not known here; its first does as well.
        self._is_armed = not self._found and self.is_due_after(trainer, trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        self._is_armed = False
        if not batch.get("pixel_values_videos"):
            self._found = {}  # of a pass on nothing, for the sake of the other ranks
        if not self.is_due(trainer):
            return
        found, self._found = self._found, {}
        report(trainer, _mean_over_ranks(trainer, found, self._keys(pl_module)))

    def _keys(self, pl_module: Any) -> list[str]:
        """What every rank measures, whether it had a video or not: the ranks add up the same numbers."""
        compressor = pl_module.model.compressor
        if compressor is None:
            return []
        keys = ["queries_changed", "query_change"]
        blocks = [module for module in compressor.modules() if isinstance(module, MambaBlock)]
        for number, block in enumerate(blocks):
            prefix = f"layer_{number}/" if len(blocks) > 1 else ""
            if isinstance(block.mixer, ScanMixer):
                for direction in DIRECTIONS[: 1 + block.mixer.bidirectional]:
                    keys += [f"{prefix}{name}/{direction}" for name in ("delta", *_MEMORY)]
        return keys

    @torch.no_grad()
    def _compare_queries(self, compressor: Any, arguments: Any, output: Tensor) -> None:
        if not self._is_armed or "query_change" in self._found:
            return
        queries = arguments[1][0].flatten(0, 1).float()  # (Q, C), of the first video
        change = (output[0].flatten(0, 1).float() - queries).norm(dim=-1) / queries.norm(dim=-1).clamp_min(1e-12)
        self._found["queries_changed"] = (change > self.changed_above).float().mean()
        self._found["query_change"] = change.mean()

    @torch.no_grad()
    def _measure_scan(self, block: Any, arguments: Any, prefix: str) -> None:
        mixer = block.mixer
        if not self._is_armed or f"{prefix}delta/forward" in self._found or not isinstance(mixer, ScanMixer):
            return
        tokens, queries, query_index = (argument.detach() for argument in arguments[:3])
        x = block.norm(_windows(interleave(tokens[:1], queries[:1], query_index)[0], mixer, self.positions))
        for number, direction in enumerate(DIRECTIONS[: 1 + mixer.bidirectional]):
            delta, memory = scan_speed(mixer, x, number)
            self._found[f"{prefix}delta/{direction}"] = delta.mean()
            self._found[f"{prefix}memory_tokens/{direction}"] = memory.mean()
            self._found[f"{prefix}memory_tokens_median/{direction}"] = memory.median()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


_MEMORY = ("memory_tokens", "memory_tokens_median")


def scan_speed(mixer: ScanMixer, windows: Tensor, direction: int) -> tuple[Tensor, Tensor]:
    """How fast the scan of one direction forgets.

    Args:
        windows: (n, 2 W - 1, C), the layer's input around n positions, as far as a convolution of W taps sees.
        direction: 0 (forward) or 1 (backward).

    Returns:
        (n, D) float32, the step size at each position; (D, N) float32, how many tokens each state entry reaches back.
        Of Mamba-2, whose heads each have one step size and one decay: (n, H) and (H,).
    """
    parameters: Any = mixer.directions((direction,))
    u = mixer.convolve(mixer.inner(windows), parameters)[:, :, windows.shape[1] // 2, None]  # (1, n, 1, channels)
    delta = mixer.step_sizes(u, parameters)[0, :, 0].float()
    mean, A = delta.mean(dim=0), parameters.A[0]
    return delta, 1.0 / (mean.view(-1, *[1] * (A.ndim - 1)) * A.abs())


def _windows(sequence: Tensor, mixer: ScanMixer, count: int) -> Tensor:
    """(L, C) -> (n, 2 W - 1, C): ``count`` positions spread over the sequence, each with its neighbours.

    A sequence shorter than a window is one window, with zeros around it as a convolution has them.
    """
    reach = mixer.conv1d.kernel_size[0] - 1
    if len(sequence) <= 2 * reach:
        sequence = F.pad(sequence, (0, 0, reach, reach))
    last = len(sequence) - 1 - reach
    centres = torch.linspace(reach, last, min(count, last - reach + 1), device=sequence.device).round().long()
    return sequence[centres[:, None] + torch.arange(-reach, reach + 1, device=sequence.device)]


def _mean_over_ranks(trainer: L.Trainer, found: dict[str, Tensor], keys: list[str]) -> dict[str, float]:
    """Means of the ranks that measured; none of them: nothing."""
    if not keys:
        return {}
    own = torch.stack([found[key].float() for key in keys]) if found else torch.zeros(len(keys))
    total = summed(trainer, torch.cat([own, torch.full((1,), float(bool(found)), device=own.device)]))
    *values, ranks = total.tolist()
    return {f"compressor/{key}": value / ranks for key, value in zip(keys, values, strict=True)} if ranks else {}
