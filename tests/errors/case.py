"""What a test of a message is: a wrong thing that a user does, and what has to be said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

MOST_LINES = 6  # of a message; a usage line above it does not count

DONE, FAILED, USAGE = 0, 1, 2


@dataclass(frozen=True)
class Case:
    """A wrong thing.

    Attributes:
        name: of the test.
        words: the arguments; {workshop} is the folder of broken files, which is also the working directory.
        says: pieces of the message: what was received, what was expected, what to do. The first one is what a user
            would look for in docs/troubleshooting.md.
        code: what the program exits with.
        env: variables that are set.
    """

    name: str
    words: Sequence[str]
    says: Sequence[str]
    code: int = FAILED
    env: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def check_said(said: str, pieces: Sequence[str]) -> None:
    """A few lines without a trace that have all pieces."""
    assert "Traceback" not in said, said
    assert 0 < len(said.strip().splitlines()) <= MOST_LINES, said
    for piece in pieces:
        assert piece in " ".join(said.split()), f"no {piece!r} in:\n{said}"
