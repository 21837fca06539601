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


def _nothing(call: Any) -> tuple[int, ...]:
    return (0,)


@dataclass(frozen=True)
class Backend:
    """One implementation of an op. A call is the op's dataclass of checked inputs.

    Attributes:
        forward: the op's outputs. What it is given and returns beyond the call, the op's folder says.
        backward: the gradients of the op's inputs.
        priority: ``auto`` takes the highest number that can run.
        saved_shape: call -> the shape of ``saved``, found without looking at values.
        unavailable: asked once per call: why this machine cannot run it and what to install, or None.
        refuses: asked with the call: why it cannot take these inputs, judging by devices, dtypes and shapes, or None.
        expected: every machine should be able to run it: that it cannot is worth a warning.
    """

    forward: Callable[..., tuple[Any, ...]]
    backward: Callable[..., tuple[Any, ...]]
    priority: int
    saved_shape: Callable[[Any], tuple[int, ...]] = _nothing
    unavailable: Callable[[], str | None] = lambda: None
    refuses: Callable[[Any], str | None] = lambda call: None
    expected: bool = False


class Registry:
    """The backends of one op: every module of its package that defines ``BACKEND``.

    Args:
        package: the op's.
        variable: the environment variable that names the backend which "auto" takes; empty is the same as not set.
    """

    def __init__(self, package: str, variable: str) -> None:
        self.package = package
        self.variable = variable
        self._said: set[tuple[int, str]] = set()

    @cached_property
    def backends(self) -> dict[str, Backend]:
        """Name -> backend, best first."""
        path = importlib.import_module(self.package).__path__
        names = [module.name for module in pkgutil.iter_modules(path)]
        modules = {name: importlib.import_module(f"{self.package}.{name}") for name in names}
        found = {name: module.BACKEND for name, module in modules.items() if hasattr(module, "BACKEND")}
        return dict(sorted(found.items(), key=lambda item: -item[1].priority))

    def choose(self, name: str, call: Any) -> Backend:
        """The backend called ``name``, or with "auto" the best one that can run; raises as :meth:`name_of` does."""
        return self.backends[self.name_of(name, call)]

    def name_of(self, name: str, call: Any) -> str:
        """The name of the backend that runs this call: ``name``, or for "auto" that of the best one that can.

        Raises:
            BimbaError: there is no such backend, or it cannot run here or on these inputs.
        """
        by = ""
        if name == "auto" and (name := self.preferred()) != "auto":
            by = f" by the variable {self.variable}"
        if name == "auto":
            return self._choose_best(call)
        if name not in self.backends:
            known = ", ".join(["auto", *self.backends])
            named = f" (asked for{by})" if by else ""
            raise BimbaError(f"{self.package}: no backend is called {name!r}{named}; choose one of: {known}.")
        reason = self.refusal(name, call)
        if reason is not None:
            raise BimbaError(
                f"{self.package}: backend {name!r} was asked for{by} but cannot run: {reason}. The name auto takes one "
                "that can."
            )
        return name

    def preferred(self) -> str:
        """What the environment variable names; "auto" if nothing."""
        return os.environ.get(self.variable) or "auto"

    def refusal(self, name: str, call: Any) -> str | None:
        """Why the backend called ``name`` cannot run on these inputs, or None when it can."""
        backend = self.backends[name]
        return backend.unavailable() or backend.refuses(call)

    def _choose_best(self, call: Any) -> str:
        refusals = []
        for name, backend in self.backends.items():
            reason = self.refusal(name, call)
            if reason is None:
                self._say_once(logging.INFO, f"{self.package}: auto chose backend {name!r}")
                return name
            refusals.append(f"{name}: {reason}")
            missed = backend.expected and backend.refuses(call) is None  # it would have run but for this machine
            level = logging.WARNING if missed else logging.INFO
            self._say_once(level, f"{self.package}: backend {name!r} passed over: {reason}")
        raise BimbaError(f"{self.package}: no backend can run here. " + "; ".join(refusals))

    def _say_once(self, level: int, message: str) -> None:
        if (level, message) not in self._said:
            self._said.add((level, message))
            logger.log(level, message)
