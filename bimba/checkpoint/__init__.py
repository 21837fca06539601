"""Checkpoint formats, in and out."""

from bimba.versions import check_versions

check_versions("torch", "transformers")  # before names are imported that others do not have

from bimba.checkpoint.convert import convert  # noqa: E402
from bimba.checkpoint.folder import check_destination  # noqa: E402
from bimba.checkpoint.io import load_pretrained, outline_pretrained, save_pretrained, write_pretrained  # noqa: E402
from bimba.checkpoint.source import checkpoint_folder  # noqa: E402
from bimba.checkpoint.tensors import Stored  # noqa: E402

__all__ = [
    "Stored",
    "check_destination",
    "checkpoint_folder",
    "convert",
    "load_pretrained",
    "outline_pretrained",
    "save_pretrained",
    "write_pretrained",
]
