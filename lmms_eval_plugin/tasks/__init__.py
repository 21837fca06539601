"""Tasks for the harness: one folder each."""
