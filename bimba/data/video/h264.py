"""What a key frame of H.264 says of itself."""

from __future__ import annotations

_IDR, _SEI = 5, 6  # kinds of units
_RECOVERY_POINT = 6  # a kind of message in an SEI unit


def is_clean_key(data: bytes, extradata: bytes | None) -> bool:
    """Whether decoding can begin with this key frame: it is an IDR, or the recovery from its loss takes no frames.

    A film in which a moving column is refreshed has key frames that are whole only many frames later.
    """
    if not extradata or extradata[0] != 1:
        return True  # not cut into units of known length, as in MPEG-TS, where no jumps are made
    size = (extradata[4] & 3) + 1
    while len(data) > size:
        length = int.from_bytes(data[:size], "big")
        unit, data = data[size : size + length], data[size + length :]
        kind = unit[0] & 31 if unit else 0
        if kind == _IDR or (kind == _SEI and _recovers_at_once(unit[1:])):
            return True
    return False


def _recovers_at_once(messages: bytes) -> bool:
    """Whether there is a recovery point among SEI messages, after 0 frames: its first bit is set."""
    while len(messages) > 2:
        kind, length = messages[0], messages[1]
        if kind == _RECOVERY_POINT:
            return bool(messages[2] & 0x80)
        if 255 in (kind, length):
            return False  # a longer form, for user data; a recovery point comes before it
        messages = messages[2 + length :]
    return False
