"""The convolution's kernels for GPUs; only ``triton.py`` beside this folder imports them, where Triton is installed."""
