"""Folders that appear whole or not at all, and replace nothing but an older checkpoint."""

from __future__ import annotations

import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from bimba.checkpoint.tensors import listing, read_json
from bimba.model.config import BimbaConfig
from bimba.types import BimbaError

log = logging.getLogger(__name__)

# The files of a checkpoint in our format, of any release of transformers.
_OURS = re.compile(
    r"(config|generation_config|processor_config|preprocessor_config|video_preprocessor_config|tokenizer|tokenizer_config"
    r"|special_tokens_map|added_tokens|vocab|chat_template)\.json|merges\.txt|chat_template\.jinja|README\.md"
    r"|model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
)


def check_destination(folder: str | os.PathLike[str], *, replace: bool = False) -> Path:
    """Where ``folder`` really is, links followed, if a checkpoint may be written there.

    It must not exist yet, or be empty.

    Args:
        replace: it may also hold an older checkpoint in our format, which has files only.

    Raises:
        BimbaError: something else is there, or it is a folder that cannot be renamed.
    """
    real = Path(os.path.realpath(folder))
    try:
        if not real.exists():
            return real
        if not real.is_dir():
            raise BimbaError(f"{folder} exists already and is no folder; give a new folder.")
        held = sorted(path.name for path in real.iterdir())
        working = Path.cwd()
        mounted = real.is_mount()
    except OSError as error:
        raise _not_written(folder, error) from error
    if held and not replace:
        raise BimbaError(f"{folder} exists already; give a new folder, or remove it first.")
    if held and not _is_checkpoint(real):
        raise BimbaError(
            f"{folder} exists already and is not only a checkpoint in our format (it also holds: "
            f"{listing(_strangers(real) or held, 5)}); only such a one is replaced. Move that elsewhere, or give a new "
            "folder."
        )
    if mounted or real == working or real in working.parents:
        what = "a mount point" if mounted else "the working directory, or around it,"
        raise BimbaError(f"{folder} is {what} and cannot be replaced; give a folder in it, such as {real / 'bimba'}.")
    return real


@contextmanager
def whole_folder(folder: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """A new folder to write into, which takes the place of ``folder`` at the end; an error changes nothing.

    Args:
        folder: as :func:`check_destination` wants it, as is ``replace``.

    Raises:
        BimbaError: ``folder`` must not be written to, or writing fails: no room, no permission.
    """
    real = check_destination(folder, replace=replace)
    partial: Path | None = None
    made: list[Path] = []
    try:
        made = [parent for parent in real.parents if not parent.exists()]
        real.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{real.name}.", dir=real.parent))
        yield partial
        hidden = _umask()
        partial.chmod(0o777 & ~hidden)  # temporary folders and safetensors' files are private; a checkpoint need not be
        for path in partial.iterdir():
            if path.is_file():
                path.chmod(0o666 & ~hidden)
        _replace(check_destination(folder, replace=replace), partial)  # something may have come there meanwhile
    except BaseException as error:  # an interrupted write leaves nothing half-written behind
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # not there, or no longer empty
                parent.rmdir()
        # The tokenizers library reports the system's errors as nothing more special than an Exception.
        if isinstance(error, OSError | SafetensorError) or type(error) is Exception:
            raise _not_written(folder, error) from error
        raise


def _umask() -> int:
    """What the user wants hidden of new files; to read it is to set it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _replace(folder: Path, partial: Path) -> None:
    """Puts ``partial`` in place of ``folder``, which may exist and is deleted only once that is done."""
    if not folder.exists():
        os.replace(partial, folder)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    old = aside / folder.name
    try:
        os.replace(folder, old)
        os.replace(partial, folder)
    except BaseException:
        if old.exists():
            _put_back(old, folder)
        aside.rmdir()
        raise
    try:
        shutil.rmtree(aside)
    except OSError as error:
        log.warning("%s is written, but the one it replaces could not be deleted from %s: %s", folder, aside, error)


def _put_back(old: Path, folder: Path) -> None:
    try:
        os.replace(old, folder)
    except OSError as error:
        raise BimbaError(
            f"{folder} could not be replaced, nor could the checkpoint that was there be put back "
            f"({error.strerror}). It is whole, in {old}; move it back."
        ) from error


def _is_checkpoint(folder: Path) -> bool:
    """Whether a folder holds a ``config.json`` of ours, and nothing but what stands beside it in a checkpoint."""
    try:
        model_type = read_json(folder / "config.json").get("model_type")
    except BimbaError:
        return False
    return model_type == BimbaConfig.model_type and not _strangers(folder)


def _strangers(folder: Path) -> list[str]:
    """What somebody else put into a checkpoint's folder: notes, scores, a subfolder."""
    return sorted(path.name for path in folder.iterdir() if not (path.is_file() and _OURS.fullmatch(path.name)))


def _not_written(folder: str | os.PathLike[str], error: BaseException) -> BimbaError:
    reason = str(error)
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror + (f" ({error.filename})" if error.filename else "")
    return BimbaError(
        f"The checkpoint {os.fspath(folder)} could not be written: {reason}. What was there before is unchanged; give "
        "a folder that can be written to and has room."
    )
