"""The seven benchmarks of the published table."""
