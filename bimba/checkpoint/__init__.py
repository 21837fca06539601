"""Checkpoint formats, in and out."""

from bimba.checkpoint.convert import convert
from bimba.checkpoint.folder import check_destination
from bimba.checkpoint.io import load_pretrained, outline_pretrained, save_pretrained, write_pretrained
from bimba.checkpoint.source import checkpoint_folder
from bimba.checkpoint.tensors import Stored

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
