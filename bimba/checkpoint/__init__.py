"""Checkpoint formats, in and out."""

from bimba.checkpoint.io import load_pretrained, save_pretrained
from bimba.checkpoint.source import checkpoint_folder

__all__ = ["checkpoint_folder", "load_pretrained", "save_pretrained"]
