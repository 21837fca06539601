"""Small files of every kind that readers are known to trip over; each frame's number is painted on it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.data.files import numbered_frames

NUM_FRAMES, RATE, SIZE = 60, 10, 64
CUT_S = 1.55  # where the files with edit lists begin to be shown
TRIMMED_S = 2  # and how much of one of them is
_X264 = {"crf": "18", "preset": "veryfast", "g": "12", "bf": "2", "threads": "1"}
_AV1 = {"cpu-used": "8", "crf": "20", "g": "12", "usage": "realtime"}
_X265 = "keyint=12:min-keyint=12:bframes=2:scenecut=0:log-level=none:pools=1:open-gop="
_ONE = 0x10000  # 1.0 in an mp4's matrix


@dataclass(frozen=True)
class Kind:
    """How a file is made.

    Attributes:
        reader: who reads it under "auto", where torchcodec is not installed.
        first: the number on the first frame that is shown.
        by_decord: decord gives the right frames.
    """

    name: str
    reader: str
    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: dict(_X264))
    pixels: str = "yuv420p"
    colours: int | None = None  # FFmpeg's number of a colour matrix
    is_vfr: bool = False
    width: int = SIZE
    container: dict[str, str] = field(default_factory=dict)
    first: int = 0
    by_decord: bool = True


def _opened(**x264: str) -> dict[str, str]:
    return {**_X264, "x264-params": ":".join(f"{key}={value}" for key, value in x264.items())}


KINDS = [
    Kind("closed.mp4", "decord"),
    Kind("closed.mkv", "decord"),
    Kind("fragmented.mp4", "decord", container={"movflags": "frag_keyframe+empty_moov"}),
    Kind("open.mp4", "pyav", options=_opened(**{"open-gop": "1", "b-adapt": "0", "scenecut": "0"}), by_decord=False),
    Kind("refresh.mp4", "pyav", options=_opened(**{"intra-refresh": "1", "scenecut": "0"}), by_decord=False),
    Kind("vfr.mp4", "decord", is_vfr=True),
    Kind("transport.ts", "pyav", by_decord=False),
    Kind("bt709.mp4", "decord", colours=1),
    Kind("444.mp4", "decord", pixels="yuv444p"),
    Kind("10bit.mp4", "decord", pixels="yuv420p10le"),
    Kind("wide.mp4", "pyav", width=72, by_decord=False),  # decord makes room for other bytes than it copies
    Kind("hevc.mp4", "decord", "libx265", {"preset": "ultrafast", "x265-params": _X265 + "0"}),
    Kind(
        "hevc_10bit.mp4",
        "decord",
        "libx265",
        {"preset": "ultrafast", "x265-params": _X265 + "0"},
        pixels="yuv420p10le",
    ),
    Kind("hevc_open.mp4", "pyav", "libx265", {"preset": "ultrafast", "x265-params": _X265 + "1"}, by_decord=False),
    Kind("av1.mp4", "pyav", "libaom-av1", _AV1, by_decord=False),
    Kind("vp9.webm", "decord", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8", "crf": "20"}),
    Kind("mpeg2.mpg", "pyav", "mpeg2video", {"g": "12", "bf": "2", "b": "3M"}, by_decord=False),
    Kind("mpeg4.avi", "pyav", "mpeg4", {"g": "12", "bf": "2", "b": "3M"}, by_decord=False),
    Kind("edit_list.mp4", "pyav", first=16, by_decord=False),
    Kind("trimmed.mp4", "pyav", first=16, by_decord=False),
    Kind("truncated.mkv", "pyav", container={"cluster_time_limit": "500"}),
    Kind("turned_90.mp4", "decord"),
    Kind("turned_180.mp4", "decord"),
    Kind("turned_270.mp4", "decord"),
]


HIDDEN = 20  # the frame that the file of ``make_hidden`` does not show


def make_hidden(path: Path) -> Path:
    """VP8 with a frame that others refer to and nobody is shown, as encoders write them in two passes."""
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libvpx", rate=Fraction(RATE))
        stream.height, stream.width, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        stream.options = {"g": "12", "deadline": "realtime", "cpu-used": "8", "b": "2M"}
        number = 0
        for picture in [*_pictures(SIZE), None]:
            frame = None if picture is None else av.VideoFrame.from_ndarray(picture, format="rgb24")
            for packet in stream.encode(frame):
                data = bytearray(packet)
                data[0] &= 0xEF if number == HIDDEN else 0xFF
                copy = av.Packet(bytes(data))
                copy.pts, copy.dts, copy.time_base, copy.stream = packet.pts, packet.dts, packet.time_base, stream
                copy.is_keyframe = packet.is_keyframe
                file.mux(copy)
                number += 1
    return path


def make(kind: Kind, folder: Path) -> Path:
    path = folder / kind.name
    match kind.name.partition("_")[0].partition(".")[0]:
        case "edit":
            return _cut(_encode(folder / "whole.mp4", kind), path)
        case "trimmed":
            return _trim(_encode(path, kind))
        case "truncated":
            data = _encode(path, kind).read_bytes()
            path.write_bytes(data[: len(data) * 6 // 10])
            return path
        case "turned":
            return _turn(_encode(path, kind), int(path.stem.partition("_")[2]))
    return _encode(path, kind)


def _encode(path: Path, kind: Kind) -> Path:
    with av.open(str(path), "w", options=kind.container) as file:
        rate = 25 if kind.codec == "mpeg2video" else RATE  # it knows certain rates only
        stream = file.add_stream(kind.codec, rate=Fraction(rate))
        stream.height, stream.width, stream.pix_fmt = SIZE, kind.width, kind.pixels
        stream.options = kind.options
        context = stream.codec_context
        context.thread_count = 1
        if kind.colours is not None:
            context.colorspace = context.color_primaries = context.color_trc = kind.colours
        if kind.is_vfr:
            context.time_base = Fraction(1, 1000)
        time_ms = 0
        for number, picture in enumerate(_pictures(kind.width)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if kind.colours is not None:
                frame = frame.reformat(format=kind.pixels, dst_colorspace=kind.colours)
            if kind.is_vfr:
                frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
                time_ms += 40 + number * 37 % 200
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


def _pictures(width: int) -> np.ndarray:
    """(T, SIZE, width, 3): stripes in the upper half, which are the number, and colours in the lower one."""
    pictures = numbered_frames(NUM_FRAMES, width)[:, :SIZE].copy()
    ramp = np.linspace(0, 255, width).astype(np.uint8)
    pictures[:, SIZE // 2 :, :, 0] = ramp
    pictures[:, SIZE // 2 :, :, 1] = np.linspace(255, 0, SIZE // 2).astype(np.uint8)[:, None]
    pictures[:, SIZE // 2 :, :, 2] = 4 * np.arange(NUM_FRAMES, dtype=np.uint8)[:, None, None]
    return pictures


def _cut(source: Path, path: Path) -> Path:
    """As ``ffmpeg -ss -c copy``: the packets from the key frame on, and a list that hides what was not wanted."""
    with av.open(str(source)) as old, av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as new:
        track = old.streams.video[0]
        copy = new.add_stream_from_template(track)
        offset = int(CUT_S / track.time_base)
        old.seek(offset, stream=track)
        for packet in old.demux(track):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - offset, packet.dts - offset, copy
                new.mux(packet)
    return path


def _trim(path: Path) -> Path:
    """As phones do it: everything stays in the file, and its list shows two seconds from ``CUT_S`` on."""
    data = bytearray(path.read_bytes())
    (per_second,) = struct.unpack_from(">I", data, data.index(b"mdhd") + 16)
    entry = data.index(b"elst") + 12
    _, start = struct.unpack_from(">ii", data, entry)
    struct.pack_into(">ii", data, entry, 1000 * TRIMMED_S, start + int(CUT_S * per_second))
    path.write_bytes(data)
    return path


def _turn(path: Path, degrees: int) -> Path:
    """Writes a rotation into the header of the track, which PyAV cannot."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    plain = struct.pack(">9I", _ONE, 0, 0, 0, _ONE, 0, 0, 0, 1 << 30)
    if data[start : start + 36] != plain:
        raise ValueError("the matrix is not where it was expected")
    a, b, c, d = {90: (0, _ONE, -_ONE, 0), 180: (-_ONE, 0, 0, -_ONE), 270: (0, -_ONE, _ONE, 0)}[degrees]
    data[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
