"""Step [4]: bidirectional scans over learned anchors, and a gated aggregation of the patches around each anchor.

After MambaMia, "State-Space Hierarchical Compression with Gated Attention and Learnable Sampling" (Kim & Seo,
arXiv 2506.13564), which takes BIMBA as its base and replaces the pooled queries. From the paper:

- a learned query token, the anchor, is inserted after every k patches (there k = 24, a row of the grid), and
  bidirectional scans run over the whole sequence;
- with q an anchor's token after the scan and x_1 ... x_k its k patches ("gated patch aggregation", eqs. 2 and 3)::

      alpha = softmax(W_alpha q + b_alpha)      a = sum_i alpha_i x_i
      g = sigmoid(W_g q + b_g), a scalar        f = (1 - g) q + g a

  so that what is taken of the patches depends on the anchor alone, which has seen the whole video.

Our reading, where the paper's text leaves it open or our contract asks for something else:

- An anchor per query, standing where BIMBA's queries stand; its patches are those between it and the anchor before.
  They are k or k + 1 with k = S // Q, so the k weights are read off ``num_weights`` of them, in a line between
  neighbours: the same parameters serve every grid and ratio, and with k = ``num_weights`` it is the paper's formula.
- All anchors are one learned vector. The x_i are the patches as they entered the compressor, not as the scan left
  them, so that the last layer is computed at the anchors only.
- A fresh compressor has to return the pooled queries: f passes a norm and a matrix that starts as zero, and is added.
- The paper's second stage, which selects frames by the step size of a further scan along time, is left out: the number
  of tokens is fixed by the contract.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from bimba.model.compressor._base import Product, check_sizes
from bimba.model.compressor.mamba import MambaCompressor
from bimba.model.mamba import RMSNorm

ANCHORS_AT_A_TIME = 64  # whose patches are one matrix product: it is mostly zeros, and grows with their square


class GatedPatchCompressor(MambaCompressor):
    """Scans refine learned anchors; each gates itself against a weighted mean of its own patches.

    Args: as :class:`MambaCompressor`, but the anchors are always interleaved, and
        num_weights: K, how finely an anchor can weigh its run of patches.
        norm: RMSNorm in front of each mixer, and of the last matrix.
    """

    selects_behind_layers = True  # an anchor weighs its patches when it has read the question

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 1,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        num_weights: int = 16,
        bidirectional: bool = True,
        multi_scale: bool = True,
        norm: bool = True,
        scan_backend: str = "auto",
        chunk_tokens: int | Literal["auto"] = "auto",
        question_conditioned: bool = False,
    ) -> None:
        super().__init__(
            hidden_size,
            num_layers=num_layers,
            d_state=d_state,
            d_conv=d_conv,
            expand=expand,
            bidirectional=bidirectional,
            multi_scale=multi_scale,
            norm=norm,
            scan_backend=scan_backend,
            chunk_tokens=chunk_tokens,
            question_conditioned=question_conditioned,
        )
        check_sizes(num_weights=num_weights)
        self.anchor = nn.Parameter(torch.empty(hidden_size))
        self.weights = nn.Linear(hidden_size, num_weights)
        self.gate = nn.Linear(hidden_size, 1)
        self.norm = RMSNorm(hidden_size) if norm else nn.Identity()
        self.out_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The zero that makes a fresh compressor the identity moves from the mixers, so that these learn at once."""
        for layer in self.layers:
            layer.mixer.reset_parameters()  # type: ignore[operator, union-attr]
            layer.mixer.out_proj.reset_parameters()  # type: ignore[operator, union-attr]
        nn.init.normal_(self.anchor, std=self.hidden_size**-0.5)
        self.weights.reset_parameters()
        self.gate.reset_parameters()
        nn.init.zeros_(self.out_proj.weight)

    def forward(self, space_time_tokens: Tensor, queries: Tensor, question: Tensor | None = None) -> Tensor:
        """(B, T, H, W, C), (B, T', Q', C), (B, P, C) -> (B, T', Q', C) in the queries' dtype."""
        self.check(space_time_tokens, queries, question)
        anchors = self.anchor.expand(queries.shape)
        scanned = super().forward(space_time_tokens, anchors, question).flatten(1, 2)  # (B, Q, C)
        patches = space_time_tokens.to(scanned.dtype).flatten(1, 3)  # (B, S, C)
        aggregated = torch.cat(self._aggregate(scanned, patches), dim=1)
        gate = self.gate(scanned).sigmoid()  # (B, Q, 1)
        change = self.out_proj(self.norm((1 - gate) * scanned + gate * aggregated))
        return queries + change.view(queries.shape).to(queries.dtype)

    def products(self, grid: tuple[int, int, int], queries: tuple[int, int]) -> Iterator[Product]:
        """As of every compressor: the scans, then at the anchors the matrices, and each patch's share of a mean."""
        num_queries = prod(queries)
        yield from super().products(grid, queries)
        yield from ((linear.weight, num_queries) for linear in (self.weights, self.gate, self.out_proj))
        yield None, 2.0 * grid[0] * grid[1] * grid[2] * self.hidden_size

    def _aggregate(self, scanned: Tensor, patches: Tensor) -> list[Tensor]:
        """The weighted mean of each anchor's patches, (B, Q, C) in parts; zero for one without patches.

        Split, not sliced: the gradient of a slice is as long as the sequence.
        """
        num_patches, num_anchors = patches.shape[1], scanned.shape[1]
        ends = (self.query_index(num_patches, num_anchors) - torch.arange(num_anchors)).tolist()  # patches before each
        bounds = [*range(0, num_anchors, ANCHORS_AT_A_TIME), num_anchors]
        before = [0, *ends]
        sizes = [before[stop] - before[start] for start, stop in zip(bounds, bounds[1:], strict=False)]
        parts = zip(self.weights(scanned).split(ANCHORS_AT_A_TIME, dim=1), patches.split(sizes, dim=1), strict=True)
        aggregated = []
        for start, (scores, part) in zip(bounds, parts, strict=False):
            runs = before[start : start + scores.shape[1] + 1]
            is_own, place = _runs([end - runs[0] for end in runs], self.weights.out_features, patches.device)
            scores = scores @ place.to(scores.dtype)  # (B, q, s)
            alpha = scores.masked_fill(~is_own, torch.finfo(scores.dtype).min).softmax(-1)
            aggregated.append(alpha.masked_fill(~is_own, 0) @ part)
        return aggregated


def _runs(bounds: list[int], num_weights: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Where each patch stands in its run; run i is of patches bounds[i] to bounds[i + 1].

    Returns:
        (q, s) bool, whether a patch is in an anchor's run; (K, s) float32, the shares of the K weights in each patch's:
        those of the two next to its place, which is the middle of an r-th of the run, of r patches.
    """
    ends = torch.tensor(bounds[1:], device=device)
    patch = torch.arange(bounds[-1], device=device)
    run = torch.searchsorted(ends, patch, right=True)  # (s,)
    starts = torch.tensor(bounds[:-1], device=device)
    share = (patch - starts[run] + 0.5) / (ends - starts)[run]
    place = (share * num_weights - 0.5).clamp(0, num_weights - 1)  # in weights, 0 is the first's middle
    weight = torch.arange(num_weights, device=device)
    is_own = run == torch.arange(len(ends), device=device)[:, None]
    return is_own, (1 - (place - weight[:, None]).abs()).clamp(min=0)


COMPRESSOR = GatedPatchCompressor
