"""Which implementation of an op runs: every backend is asked whether it can run here and takes these inputs.

A backend is one file in the op's folder that ends with ``BACKEND = Backend(...)``; the file's name is the backend's
name. Adding one touches nothing else.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bimba.types import BimbaError

logger = logging.getLogger(__name__)

VARIABLE = "BIMBA_SCAN_BACKEND"


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Attributes:
        run: the implementation; receives the op's checked arguments.
        priority: ``auto`` takes the highest number that can run.
        unavailable: asked once per call: why this machine cannot run it and what to install, or None.
        refuses: asked with the op's arguments: why it cannot take these inputs, or None.
    """

    run: Callable[..., Any]
    priority: int
    unavailable: Callable[[], str | None] = lambda: None
    refuses: Callable[..., str | None] = lambda *args, **kwargs: None


class Registry:
    """The backends of one op: every module of its package that defines ``BACKEND``."""

    def __init__(self, package: str) -> None:
        self.package = package
        self._said: set[tuple[str, str]] = set()

    @cached_property
    def backends(self) -> dict[str, Backend]:
        """Name -> backend, best first."""
        path = importlib.import_module(self.package).__path__
        names = [module.name for module in pkgutil.iter_modules(path)]
        modules = {name: importlib.import_module(f"{self.package}.{name}") for name in names}
        found = {name: module.BACKEND for name, module in modules.items() if hasattr(module, "BACKEND")}
        return dict(sorted(found.items(), key=lambda item: -item[1].priority))

    def choose(self, name: str, *args: Any, **kwargs: Any) -> Backend:
        """The backend called ``name``, or with "auto" the best one that can run; the arguments are the op's.

        The environment variable BIMBA_SCAN_BACKEND names what "auto" takes.
        """
        if name == "auto":
            name = os.environ.get(VARIABLE, "auto")
        if name == "auto":
            return self._choose_best(*args, **kwargs)
        if name not in self.backends:
            known = ", ".join(["auto", *self.backends])
            raise BimbaError(f"{self.package}: no backend is called {name!r}; choose one of: {known}.")
        reason = self.refusal(name, *args, **kwargs)
        if reason is not None:
            raise BimbaError(f"{self.package}: backend {name!r} was asked for but cannot run: {reason}")
        return self.backends[name]

    def refusal(self, name: str, *args: Any, **kwargs: Any) -> str | None:
        """Why the backend called ``name`` cannot run on these inputs, or None when it can."""
        backend = self.backends[name]
        return backend.unavailable() or backend.refuses(*args, **kwargs)

    def _choose_best(self, *args: Any, **kwargs: Any) -> Backend:
        refusals = []
        for name, backend in self.backends.items():
            reason = self.refusal(name, *args, **kwargs)
            if reason is None:
                self._say_once(name, f"{self.package}: auto chose backend {name!r}")
                return backend
            refusals.append(f"{name}: {reason}")
            self._say_once(name, f"{self.package}: backend {name!r} passed over: {reason}")
        raise BimbaError(f"{self.package}: no backend can run here. " + "; ".join(refusals))

    def _say_once(self, name: str, message: str) -> None:
        if (name, message) not in self._said:
            self._said.add((name, message))
            logger.info(message)
