"""BIMBA for the lmms-eval harness: a model (``--model bimba``) and tasks (``--tasks bimba_needle``).

Found by the harness through the entry point in ``pyproject.toml``; see ``manifest.py``.
"""
