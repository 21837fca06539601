"""``bimba ask`` and ``bimba map``: videos, questions, numbers, devices."""

from __future__ import annotations

import pytest

from tests.errors.case import USAGE, Case

_TINY = ("--checkpoint", "good", "--device", "cpu")
_SCANNING = ("--checkpoint", "scanning", "--device", "cpu")


def _video(name: str, path: str, *says: str) -> Case:
    return Case(name, ["ask", path, "Who?", *_TINY], [says[0], path, *says[1:]])


def _about(name: str, words: list[str], *says: str, code: int = 1) -> Case:
    return Case(name, ["ask", "clip.mp4", *words, *_TINY], says, code)


def _device(name: str) -> Case:
    words = ["ask", "clip.mp4", "Who?", "--checkpoint", "good", "--device", name]
    return Case(f"device_{name}", words, ["cannot be used here", repr(name), "expected auto, cpu", "bimba doctor"])


def _map(name: str, words: list[str], *says: str, code: int = 1) -> Case:
    return Case(name, ["map", "clip.mp4", *words], says, code)


CASES = [
    _video("no_such_video", "nowhere.mp4", "videos are read from local files only", "Check the path"),
    _video("a_folder", "folder", "a folder. Expected a video file", "give the path of a file in it"),
    _video("an_empty_file", "empty.mp4", "an empty file (0 bytes)", "Expected a video", "again"),
    _video(
        "text_renamed", "text.mp4", "not a media file, or a truncated one", "600 bytes", "Expected a video", "again"
    ),
    _video("a_web_page", "page.mp4", "an HTML page, usually the error page of a failed download", "again"),
    _video("a_pointer", "pointer.mp4", "a Git LFS pointer", "git lfs pull"),
    _video("sound_only", "sound.mp4", "a media file with audio only", "Give a file that holds a video track"),
    _video("truncated", "truncated.mp4", "not a media file, or a truncated one", "Expected a video", "again"),
    _video("no_frames", "no_frames.mkv", "not a media file, or a truncated one", "Expected a video", "again"),
    _video("no_decoder", "codec.mp4", "a video track of an unknown codec", "re-encode it: ffmpeg"),
    Case(
        "unreadable",  # root may read everything but this
        ["ask", "/proc/self/mem", "Who?", *_TINY],
        ["mem: cannot be read (Input/output error)", "Check its name, its permissions and its disk"],
    ),
    _video("a_device", "/dev/null", "a device or a pipe", "Expected a regular video file"),
    Case(
        "a_web_address",
        ["ask", "https://example.com/a.mp4", "Who?", *_TINY],
        [
            "Download it first",
            "https://example.com/a.mp4: there is no such file",
            "videos are read from local files only",
        ],
    ),
    Case(
        "a_short_video",
        ["ask", "short.mp4", "Who?", *_TINY],
        ["3 frames, and 4 were asked for", "short.mp4", "--frames 3", "--short-videos repeat"],
    ),
    _about("no_frames_wanted", ["Who?", "--frames", "0"], "frames is 0; expected 1 or more", code=USAGE),
    _about("negative_frames", ["Who?", "--frames", "-3"], "frames is -3; expected 1 or more", code=USAGE),
    _about("words_for_frames", ["Who?", "--frames", "many"], "invalid int value: 'many'", "frames", code=USAGE),
    _about("too_many_frames", ["Who?", "--frames", "100000"], "this model takes at most 512", "Use fewer frames"),
    _about("too_long_an_answer", ["Who?", "--max-new-tokens", "999"], "999 for the answer", "a smaller max_new_tokens"),
    _about("an_empty_question", ["Who?", " "], "The question is empty; give the text of a question", code=USAGE),
    _about("no_question", [], "There is no question", "--questions FILE with one a line", code=USAGE),
    _about("one_option", ["Who?", "--options", "me"], "Got 1 options", "takes 2 to 26", code=USAGE),
    _about(
        "an_option_twice",
        ["Who?", "--options", "me", "me"],
        "'me' is there more than once",
        "give each once",
        code=USAGE,
    ),
    _about(
        "an_empty_option", ["Who?", "--options", "me", ""], "['me', ''] is empty", "give a text for each", code=USAGE
    ),
    _about("pooled_away", ["Who?", "--temporal-pooling", "50"], "one query averages 50", "Got 4 frames", "read more"),
    _about(
        "no_pooling", ["Who?", "--temporal-pooling", "0"], "--temporal-pooling is 0; expected 1 or more", code=USAGE
    ),
    _about(
        "no_such_reader",
        ["Who?", "--video-backend", "opencv"],
        "--video-backend: invalid choice: 'opencv' (choose from",
        code=USAGE,
    ),
    _about("a_typo_in_a_flag", ["Who?", "--frmaes", "3"], "unrecognized arguments: --frmaes 3", code=USAGE),
    *(_device(name) for name in ("gpu", "mps")),
    _map("nowhere_to_write", [*_SCANNING], "required: --out", code=USAGE),
    _map("a_map_over_files", [*_SCANNING, "--out", "folder"], "folder exists already", "give another --out"),
    _map("a_map_below_a_file", [*_SCANNING, "--out", "file/map"], "file/map cannot be written", "give another --out"),
    _map("nothing_to_map", [*_TINY, "--out", "map"], "this model has no compressor", "gated_patch, mamba, mamba2"),
    _map("no_queries", ["--out", "map", "--queries", "0"], "--queries is 0; expected 1 or more", code=USAGE),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_says_what_is_wrong(case, refused):
    assert refused(case) == ""


def test_a_gpu_that_is_not_there(refused, monkeypatch):
    """The driver's words differ; ours do not."""
    import torch

    def no_gpu(*args, **kwargs):
        raise RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and more.")

    monkeypatch.setattr(torch, "empty", no_gpu)
    for name in ("cuda", "cuda:9"):
        words = ["ask", "clip.mp4", "Who?", "--checkpoint", "good", "--device", name]
        said = ["cannot be used here (Found no NVIDIA driver on your system)", repr(name), "bimba doctor"]
        refused(Case(name, words, said))


@pytest.mark.parametrize(
    ("variable", "name", "says"),
    [
        ("BIMBA_SCAN_BACKEND", "cuda", ["no backend is called 'cuda'", "choose one of: auto"]),
        ("BIMBA_SCAN_BACKEND", "mamba_ssm", ["'mamba_ssm' was asked for", "an NVIDIA GPU", "The name auto takes one"]),
        ("BIMBA_CONV_BACKEND", "cuda", ["no backend is called 'cuda'", "choose one of: auto"]),
    ],
)
def test_a_backend_that_a_variable_names(variable, name, says, refused):
    words = ["ask", "clip.mp4", "Who?", *_SCANNING]
    refused(Case(name, words, [*says, f"by the variable {variable}"], env={variable: name}))


def test_triton_without_a_gpu(refused, monkeypatch):
    from bimba.ops.selective_scan import triton

    monkeypatch.setattr(triton, "interpreted", lambda: False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    says = ["'triton' was asked for by the variable BIMBA_SCAN_BACKEND", "no CUDA device here", "The name auto takes"]
    refused(Case("triton", ["ask", "clip.mp4", "Who?", *_SCANNING], says, env={"BIMBA_SCAN_BACKEND": "triton"}))


def test_an_unset_variable_in_the_place_of_the_video():
    from bimba.inference.source import identify
    from bimba.types import VideoDecodeError

    with pytest.raises(VideoDecodeError, match="path of the video is empty; give the path of a video file"):
        identify("", 4, "error")
