"""What a command is doing, on the terminal while it does it, and how long each stage took."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.live import Live
    from rich.spinner import Spinner

WORDS = {
    "loading": "loading the model",
    "decoding": "decoding the video",
    "encoding": "encoding frames",
    "prefill": "prefill: reading the video",
    "answering": "answering",
    "drawing": "drawing the map",
}


class Stages:
    """Shows one stage after the other on standard error, if that is a terminal, and adds up their times.

    Nothing is shown between :meth:`leave` and :meth:`enter`, so that answers can be printed there.

    Attributes:
        seconds: of each stage so far, in the order in which they began.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.is_shown = sys.stderr.isatty()
        self._stage: str | None = None
        self._since = 0.0
        self._live: Live | None = None
        self._spinner: Spinner | None = None

    def __enter__(self) -> Stages:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def enter(self, stage: str) -> None:
        """Begins a stage and ends the one before; ``WORDS`` says what is shown of it."""
        self._count()
        self._stage, self._since = stage, time.perf_counter()
        self.seconds.setdefault(stage, 0.0)
        self.show(WORDS.get(stage, stage))
        if self._live is not None:
            self._live.refresh()  # a short stage would be over before it is drawn

    def show(self, text: str) -> None:
        """Says what is happening, from the next picture on: there are eight a second."""
        if not self.is_shown:
            return
        if self._live is None or self._spinner is None:
            from rich.console import Console
            from rich.live import Live
            from rich.spinner import Spinner

            self._spinner = Spinner("dots", text)
            self._live = Live(
                self._spinner,
                console=Console(stderr=True),
                refresh_per_second=8,
                transient=True,
                redirect_stdout=False,  # or answers would come out on standard error
                redirect_stderr=False,
            )
            self._live.start()
        else:
            self._spinner.update(text=text)

    def leave(self) -> None:
        """Ends the stage, and shows nothing any more."""
        self._count()
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _count(self) -> None:
        if self._stage is not None:
            self.seconds[self._stage] += time.perf_counter() - self._since
            self._stage = None

    def summary(self, num_frames: int, num_video_tokens: int, new_tokens: int) -> str:
        """One line: frames, tokens, seconds of each stage."""
        times = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())
        said = f" ({rate(new_tokens, self.seconds.get('answering', 0.0))})" if new_tokens else ""
        return f"{num_frames} frames, {num_video_tokens} video tokens; {times or 'read before'}{said}"


def rate(num_tokens: int, seconds: float) -> str:
    per_second = f", {num_tokens / seconds:.0f} tokens/s" if seconds else ""
    return f"{num_tokens} token{'' if num_tokens == 1 else 's'}{per_second}"
