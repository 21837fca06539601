"""Training: which weights move, how fast, and what happens around each step (Lightning)."""

from bimba.versions import check_versions

check_versions("torch", "transformers", "lightning", "peft")  # before names are imported that others do not have

from bimba.training.batches import accumulation_steps, samples_per_pass  # noqa: E402
from bimba.training.build import ask_as_in, build_model, outline_model  # noqa: E402
from bimba.training.model_settings import ModelSettings  # noqa: E402
from bimba.training.module import BimbaModule  # noqa: E402
from bimba.training.trainable import log_parts, set_trainable  # noqa: E402

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
