"""[6] The journal of an evaluation: one line per answer, on the disk before the next question is asked.

A run that was killed starts again with the same command and takes from the journal what was answered; at most the
question in flight is asked again. An answer counts only for the very question it was given to: another checkpoint,
prompt, number of frames or setting is another key. Each process writes a file of its own and reads those of all, so the
next run may have more processes or fewer.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from bimba.inference.answer import Generation
from bimba.types import BimbaError

log = logging.getLogger(__name__)


def journal_key(asked: Mapping[str, Any]) -> str:
    """The name of a question with all that its answer depends on, which ``asked`` holds."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=repr).encode()).hexdigest()[:32]


class Journal:
    """The journal in a folder, held by this process alone until it is closed; a context manager.

    A full disk does not stop the run: answers that could not be written are kept, and written with the next one.

    Args:
        rank: the number of this process among those that share the folder.

    Attributes:
        answers: key -> answer, as found when the journal was opened, and those added since.
        short: the keys of those about videos that had fewer frames than asked for, so that some repeat.
        unwritten: how many answers are not on the disk.

    Raises:
        BimbaError: another evaluation writes here, or the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str], rank: int = 0):
        self.folder = Path(folder)
        self.path = self.folder / f"journal-{rank}.jsonl"
        self.answers: dict[str, Generation] = {}
        self.short: set[str] = set()
        self._waiting: list[bytes] = []
        self._lock = FileLock(str(self.path.with_suffix(".lock")))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._lock.is_locked:  # by this very process, where the harness has made locks re-entrant
                raise Timeout(self._lock.lock_file)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise BimbaError(
                f"Another evaluation is writing to {folder}. Wait until it has ended, or give another folder."
            ) from error
        except OSError as error:
            raise BimbaError(f"{folder} cannot hold a journal ({error.strerror}); give another folder.") from error
        try:
            for path in sorted(self.folder.glob("journal-*.jsonl")):
                self._read(path)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            self._end = _end_of_lines(self._file)
        except OSError as error:
            self._lock.release()
            raise BimbaError(f"The journal in {folder} cannot be opened ({error.strerror}).") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def unwritten(self) -> int:
        return len(self._waiting)

    def add(self, key: str, asked: Mapping[str, Any], answer: Generation, is_short: bool = False) -> None:
        """Writes an answer, and returns when it is on the disk, or cannot be written there.

        Args:
            asked: what was asked, for the reader of the file.
            is_short: the video had fewer frames than asked for, so that some repeat.
        """
        self._keep(key, answer, is_short)
        line = {
            "key": key,
            **asked,
            "text": answer.text,
            "prompt_tokens": answer.prompt_tokens,
            "new_tokens": answer.new_tokens,
            "is_short": is_short,
        }
        if answer.probabilities is not None:
            line["probabilities"] = answer.probabilities
        self._waiting.append(json.dumps(line, ensure_ascii=False, default=repr).encode() + b"\n")
        self._write()

    def close(self) -> None:
        """Tries once more to write what could not be written, and lets go of the folder."""
        if self._waiting:
            self._write()
        if self._waiting:
            log.error(
                "%d answers are in the results but not in %s, whose disk is full: a run that starts again asks them "
                "again.",
                len(self._waiting),
                self.path,
            )
        os.close(self._file)
        self._lock.release()

    def _keep(self, key: str, answer: Generation, is_short: bool) -> None:
        self.answers[key] = answer
        if is_short:
            self.short.add(key)

    def _read(self, path: Path) -> None:
        damaged = 0
        for line in path.read_bytes().split(b"\n"):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                counts = entry["prompt_tokens"], entry["new_tokens"]
                answer = Generation(entry["text"], *counts, entry.get("probabilities"))
                self._keep(entry["key"], answer, entry.get("is_short", False))  # earlier versions did not write it
            except (ValueError, KeyError, TypeError):
                damaged += 1
        if damaged:
            log.warning("%s: %d lines are not whole; what they answered is asked again.", path, damaged)

    def _write(self) -> None:
        block = b"".join(self._waiting)
        try:
            # At the end of the last whole line, over whatever part of a line an earlier failure left there.
            written = 0
            while written < len(block):
                written += os.pwrite(self._file, block[written:], self._end + written)
            os.fsync(self._file)
        except OSError as error:
            why = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
            log.error(
                "%s cannot be written (%s). The run goes on; %d answers are kept in memory and written as soon as that "
                "is possible. Free some space.",
                self.path,
                why,
                len(self._waiting),
            )
            return
        self._end += len(block)
        self._waiting.clear()


def _end_of_lines(file: int) -> int:
    """Where the last whole line ends; what follows was being written when the process was killed, and is cut off."""
    size = os.fstat(file).st_size
    content = os.pread(file, size, 0)
    end = content.rfind(b"\n") + 1
    if end < size:
        os.ftruncate(file, end)
    return end
