"""Model classes for the harness."""
