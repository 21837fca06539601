"""Hydra finds what is in the namespace package ``hydra_plugins``, which therefore has no ``__init__.py``."""
