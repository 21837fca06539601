"""Training: which weights move, how fast, and what happens around each step (Lightning)."""

from bimba.training.batches import accumulation_steps, samples_per_pass
from bimba.training.build import ask_as_in, build_model, outline_model
from bimba.training.model_settings import ModelSettings
from bimba.training.module import BimbaModule
from bimba.training.trainable import log_parts, set_trainable

__all__ = [
    "BimbaModule",
    "ModelSettings",
    "accumulation_steps",
    "ask_as_in",
    "build_model",
    "log_parts",
    "outline_model",
    "samples_per_pass",
    "set_trainable",
]
