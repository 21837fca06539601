"""[6] Answers: read a video once, then ask about it as often as you like."""

from bimba.inference.answer import Choice
from bimba.inference.conditioned import ConditionedVideo
from bimba.inference.conversation import Conversation
from bimba.inference.encoded import EncodedVideo
from bimba.inference.engine import VideoQA
from bimba.inference.schedule import Question

__all__ = ["Choice", "ConditionedVideo", "Conversation", "EncodedVideo", "Question", "VideoQA"]
