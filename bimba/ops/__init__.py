"""Floor 1: the operations under step [4], free of any model: scan, causal convolution, interleaving."""

from bimba.ops.causal_conv1d import bidirectional_conv1d, causal_conv1d
from bimba.ops.interleave import deinterleave, interleave, queries_before, query_positions
from bimba.ops.selective_scan import selective_scan

__all__ = [
    "bidirectional_conv1d",
    "causal_conv1d",
    "deinterleave",
    "interleave",
    "queries_before",
    "query_positions",
    "selective_scan",
]
