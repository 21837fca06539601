"""Checkpoint formats, in and out."""

from bimba.checkpoint.convert import convert
from bimba.checkpoint.folder import check_destination
from bimba.checkpoint.io import load_pretrained, save_pretrained
from bimba.checkpoint.source import checkpoint_folder

__all__ = ["check_destination", "checkpoint_folder", "convert", "load_pretrained", "save_pretrained"]
