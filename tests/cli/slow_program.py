"""``python slow_program.py WHERE ARGUMENTS``: ``bimba ARGUMENTS`` that takes long, so that Ctrl-C comes in the middle.

WHERE: "loading" takes long to import, "decoding" to read a video whose name begins with "slow", "answering" over each
token of an answer. Where it waits it says so, as ``<WHERE>``, on standard error.
"""

from __future__ import annotations

import sys
import time

where = sys.argv[1]


def wait(seconds: float) -> None:
    sys.stderr.write(f"<{where}>\n")
    sys.stderr.flush()
    time.sleep(seconds)


if where == "loading":

    class Slow:
        def find_spec(self, name, path=None, target=None):
            if name == "torch":
                wait(60)
            return None

    sys.meta_path.insert(0, Slow())
elif where == "decoding":
    from bimba.inference.engine import VideoQA

    load = VideoQA.load

    def slow_load(self, key):
        if "/slow" in key.path:
            wait(60)
        return load(self, key)

    VideoQA.load = slow_load
else:
    from transformers.generation.streamers import BaseStreamer, TextStreamer

    from bimba.cli.streaming import CountTokens

    for streamer in (TextStreamer, CountTokens):
        assert issubclass(streamer, BaseStreamer)

        def slow_put(self, value, put=streamer.put):
            put(self, value)
            wait(0.1)

        streamer.put = slow_put

from bimba.cli import main  # noqa: E402  # after what makes it slow

sys.exit(main(sys.argv[2:]))
