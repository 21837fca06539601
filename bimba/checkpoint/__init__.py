"""Checkpoint formats, in and out."""

from bimba.checkpoint.io import checkpoint_folder, load_pretrained, save_pretrained

__all__ = ["checkpoint_folder", "load_pretrained", "save_pretrained"]
