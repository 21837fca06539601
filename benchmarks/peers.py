"""The selective scan as others compute it: (B, D, L) in, every output out, no gate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mamba_ssm_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """The recurrence as mamba_ssm's reference has it: decays and inputs of all positions at once, then a loop."""
    step = F.softplus(delta + delta_bias[:, None])
    decay = torch.exp(torch.einsum("bdl,dn->bdln", step, A))
    added = torch.einsum("bdl,bnl,bdl->bdln", step, B, u)
    state = A.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for t in range(u.shape[2]):
        state = decay[:, :, t] * state + added[:, :, t]
        outputs.append(torch.einsum("bdn,bn->bd", state, C[:, :, t]))
    return torch.stack(outputs, dim=2) + u * D[:, None]


def transformers_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **others: Tensor) -> Tensor:
    """transformers' path without CUDA kernels."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    y: Tensor = mamba_selective_scan(u, delta, A, B, C, delta_softplus=True, **others)
    return y


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, delta_bias: Tensor) -> Tensor:
    """mambapy's parallel scan."""
    from mambapy.mamba import MambaBlock

    step = F.softplus(delta.mT + delta_bias)
    y: Tensor = MambaBlock.selective_scan(None, u.mT, step, A, B.mT, C.mT, D)  # type: ignore[arg-type]  # no self in it
    return y.mT


PEERS = {"as mamba_ssm": mamba_ssm_scan, "transformers": transformers_scan, "mambapy": mambapy_scan}
