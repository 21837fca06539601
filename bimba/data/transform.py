"""Step [2]: frames to the pixels that the vision tower reads.

The work is done a floor below, in :mod:`bimba.ops.pixels`, because the model's processor makes the same pixels.
"""

from bimba.ops.pixels import frames_to_pixels

__all__ = ["frames_to_pixels"]
