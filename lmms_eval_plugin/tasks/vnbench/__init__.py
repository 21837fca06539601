"""VNBench, which the harness does not have: needles in videos, each question asked four times, options reordered."""
