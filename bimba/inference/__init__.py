"""[6] Answers: read a video once, then ask about it as often as you like."""

from bimba.inference.answer import Choice
from bimba.inference.engine import EncodedVideo, VideoQA

__all__ = ["Choice", "EncodedVideo", "VideoQA"]
