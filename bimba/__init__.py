"""BIMBA: long-video question answering with a selective-scan token compressor (arXiv 2503.09590).

Importing this package is cheap; torch and transformers are imported when one of the names below is first used.
transformers' auto classes know BIMBA from then on. Where only torch is installed, ``bimba.ops`` and
``bimba.model.compressor`` work all the same.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bimba.registration import register
from bimba.types import BimbaError

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bimba.inference.engine import VideoQA as VideoQA
    from bimba.model.bimba import BimbaForConditionalGeneration as BimbaForConditionalGeneration
    from bimba.model.config import BimbaConfig as BimbaConfig
    from bimba.model.processor import BimbaProcessor as BimbaProcessor

_HOMES = {
    "BimbaConfig": "bimba.model.config",
    "BimbaForConditionalGeneration": "bimba.model.bimba",
    "BimbaProcessor": "bimba.model.processor",
    "VideoQA": "bimba.inference.engine",
}

__all__ = ["BimbaConfig", "BimbaForConditionalGeneration", "BimbaProcessor", "VideoQA"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'bimba' has no attribute {name!r}; it has {', '.join(_HOMES)}.")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", "bimba"):
            raise
        raise BimbaError(
            f"bimba.{name} needs the package {missing}, which is not installed here; install it (pip install "
            f"{missing}), or all that BIMBA needs: pip install bimba, without --no-deps. Only bimba.model.compressor "
            "and bimba.ops work with torch alone."
        ) from error


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


register()
