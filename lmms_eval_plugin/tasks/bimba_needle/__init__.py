"""Needles in long videos: retrieval, ordering, counting."""
