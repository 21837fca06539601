"""``import bimba`` makes transformers' auto classes know BIMBA, and imports transformers neither now nor any sooner.

Our modules register what they define (``AutoConfig.register`` and so on) when they are imported. So each is imported
right after the module of transformers that it registers with: now if that one is there, else by an import hook. The
model itself would be too early then, as half of transformers is still being imported; ``BimbaConfig`` brings it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

_AFTER = {
    "transformers.models.auto.configuration_auto": "bimba.model.config",
    "transformers.models.auto.processing_auto": "bimba.model.processor",
}


class _Hook:
    """A finder of modules that leaves the finding to the others."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a module in ``_AFTER``, changed so that ours follows; None for every other module."""
        if name not in _AFTER:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((spec for finder in others if (spec := finder.find_spec(name, path, target))), None)
        if spec is not None and spec.loader is not None:
            loader, execute = spec.loader, spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                import_module(_AFTER[name])

            loader.exec_module = exec_module  # type: ignore[method-assign]  # of this loader, which loads this module only
        return spec


def register() -> None:
    """Called once, by ``bimba/__init__.py``."""
    sys.meta_path.insert(0, _Hook())
    for theirs, ours in _AFTER.items():
        if theirs in sys.modules:
            import_module(ours)
