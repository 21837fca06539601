"""[6] Compressed tokens of videos on disk, so that the next run on the same videos neither decodes nor encodes them.

One safetensors file a video, named by everything its tokens depend on. Several processes may use one folder: files
appear whole, by renaming, and one that another process removed is as if it had never been there.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bimba.types import BimbaError

log = logging.getLogger(__name__)

STORE_BYTES = 64 * 1024**3  # of the 7B model: about 700 videos of 64 frames
_SUFFIX, _PARTIAL = ".safetensors", ".partial"
_FORGOTTEN_S = 3600  # a file still being written after that belongs to a process that was killed


class TokenStore:
    """A folder of tokens that holds at most ``max_bytes``; what was used least recently goes first.

    Raises:
        BimbaError: the folder cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int = STORE_BYTES):
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BimbaError(
                f"{folder} cannot hold tokens of videos ({error.strerror}); name another folder."
            ) from error

    def get(self, name: str) -> tuple[Tensor, bool] | None:
        """The tokens, (tokens, C) or (T, H, W, C), and whether their video is short, or None if they are not there."""
        path = self.folder / (name + _SUFFIX)
        try:
            with safe_open(path, framework="pt") as file:
                found = file.get_tensor("tokens"), (file.metadata() or {}).get("is_short") == "True"
            os.utime(path)  # used now
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            log.warning("%s cannot be read (%s); its video is encoded again.", path, error)
            return None
        return found

    def put(self, name: str, tokens: Tensor, is_short: bool) -> None:
        """Keeps tokens; that it could not is logged, as the work goes on without."""
        if tokens.nbytes > self.max_bytes:
            return
        try:
            descriptor, partial = tempfile.mkstemp(_PARTIAL, dir=self.folder)
            os.close(descriptor)
            try:
                save_file({"tokens": tokens.contiguous()}, partial, metadata={"is_short": str(is_short)})
                os.replace(partial, self.folder / (name + _SUFFIX))
            finally:
                Path(partial).unlink(missing_ok=True)
            self._trim()
        except (OSError, SafetensorError) as error:
            log.warning("Tokens of a video could not be kept in %s (%s); the work goes on.", self.folder, error)

    def _trim(self) -> None:
        files = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another process was faster
                stat = path.stat()
                if path.suffix == _SUFFIX:
                    files.append((stat.st_mtime_ns, stat.st_size, path))
                elif path.suffix == _PARTIAL and time.time() - stat.st_mtime > _FORGOTTEN_S:
                    path.unlink()
        total = sum(size for _, size, _ in files)
        for _, size, path in sorted(files):
            if total <= self.max_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
