"""BIMBA: long-video question answering with a selective-scan token compressor (arXiv 2503.09590).

Importing this package is cheap; torch and transformers are imported when one of the names below is first used.
transformers' auto classes know BIMBA from then on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bimba.registration import register

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
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


register()
