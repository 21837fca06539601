"""What libraries raise over a damaged file, as one message that names the file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from bimba.types import BimbaError

FETCH_AGAIN = "Download or copy the checkpoint again."

# A number where a name belongs, a negative size, an unknown activation: libraries trip over each in another way.
_TRIPS = (
    TypeError, ValueError, KeyError, AttributeError, IndexError, ZeroDivisionError, RuntimeError, OSError,
    StrictDataclassError, SafetensorError,
)  # fmt: skip


@contextmanager
def explained(path: Path, what: str) -> Iterator[None]:
    """Turns any error over the content of ``path`` into a BimbaError that says so; ``what`` could not be made of it."""
    try:
        yield
    except _TRIPS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BimbaError(f"{path} makes no {what}: {type(error).__name__}: {reason:.300}. {FETCH_AGAIN}") from error
