"""``bimba app``: a page in the browser for a video and questions about it."""

from __future__ import annotations

import argparse
from math import inf

from bimba.cli.common import (
    Commands,
    UsageError,
    add_answers,
    add_command,
    add_model,
    add_sampling,
    check_numbers,
    hush_libraries,
    quick_imports,
)


def add(commands: Commands) -> list[argparse.ArgumentParser]:
    app = add_command(
        commands,
        "app",
        "a page in the browser: drop a video, ask, see what was selected",
        "Serves a page on this machine: drop a video, ask questions about it, see what the compressor selected, "
        "compare two checkpoints. Nothing leaves the machine. Needs Gradio: pip install 'bimba[app]'.",
        [
            "bimba app --checkpoint CHECKPOINT",
            "bimba app --checkpoint outputs/train/A/checkpoint --compare outputs/train/B/checkpoint",
        ],
    )
    add_model(app)
    app.add_argument("--compare", metavar="CHECKPOINT", help="another checkpoint, which answers beside it")
    app.add_argument("--compare-base", metavar="FOLDER", help="the base of that one, if it is an adapter")
    add_sampling(app, short_videos="repeat")
    add_answers(app)
    app.add_argument(
        "--queries", type=int, default=128, metavar="N", help="queries a selection map looks at (default: %(default)s)"
    )
    app.add_argument(
        "--host", default="127.0.0.1", help="address to serve at (default: %(default)s, this machine only)"
    )
    app.add_argument("--port", type=int, default=7860, help="0 takes a free one (default: %(default)s)")
    app.add_argument(
        "--max-upload-mb", type=float, default=500, metavar="MB", help="largest video file (default: %(default)s)"
    )
    app.add_argument(
        "--keep-minutes",
        type=float,
        default=60,
        metavar="MINUTES",
        help="how long a video is kept that nobody asks about (default: %(default)s)",
    )
    app.set_defaults(run=run)
    return [app]


def run(arguments: argparse.Namespace) -> int:
    if arguments.compare_base and not arguments.compare:
        raise UsageError("--compare-base is the base of --compare; give both.")
    if arguments.compare == arguments.checkpoint:
        raise UsageError(f"--checkpoint and --compare are both {arguments.compare}; give two different ones.")
    check_numbers(arguments)
    if not 0 <= arguments.port <= 65535:
        raise UsageError(f"--port is {arguments.port}; expected 0 (any that is free) to 65535.")
    if not (0 < arguments.max_upload_mb < inf and arguments.keep_minutes > 0):  # nan is neither
        raise UsageError(
            f"Received --max-upload-mb {arguments.max_upload_mb:g} and --keep-minutes {arguments.keep_minutes:g}; "
            "both must be numbers above 0."
        )
    from bimba.data.isolated import read_videos_with

    read_videos_with(arguments.video_backend)
    with quick_imports():
        hush_libraries()
        from bimba.app.models import Settings
        from bimba.app.server import serve

    checkpoints = [(arguments.checkpoint, arguments.base)]
    if arguments.compare:
        checkpoints.append((arguments.compare, arguments.compare_base))
    settings = Settings(
        checkpoints,
        num_frames=arguments.num_frames,
        short_videos=arguments.short_videos,
        max_new_tokens=arguments.max_new_tokens,
        queries=arguments.queries,
        device=arguments.device,
        dtype=arguments.dtype,
        temporal_pooling=arguments.temporal_pooling,
    )
    serve(settings, arguments.host, arguments.port, arguments.max_upload_mb, arguments.keep_minutes)
    return 0
