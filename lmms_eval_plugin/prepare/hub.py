"""Fetching a benchmark's repository from the hub, by its own library, and what to do where that is refused."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bimba.types import BimbaError, first_line

SOUND = ("*audio*",)  # PerceptionTest's repository has 35.5 GB of it; no task here reads sound from files of its own
NOT_ROWS = (*SOUND, "*.zip", "*.tar*", "*.tgz", "*.mp4", "*.mkv", "*.avi", "*.webm")


def page(repository: str) -> str:
    """Address of a data set's page, where the owners of a gated one are asked."""
    from huggingface_hub import constants

    return f"{os.environ.get('HF_ENDPOINT') or constants.ENDPOINT}/datasets/{repository}"


def is_shut() -> bool:
    """The variables by which the libraries are told to ask no hub; they read them once, when they are imported."""
    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return any(value.upper() in ("1", "ON", "YES", "TRUE") for value in values)


def has_token() -> bool:
    from huggingface_hub import get_token

    return get_token() is not None


def snapshot_of(repository: str, home: Path) -> Path | None:
    """The folder of what was downloaded of a repository, even if it is not all; None if nothing was."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, repo_type="dataset", cache_dir=cache(home), local_files_only=True))
    except LocalEntryNotFoundError as error:
        stopped = getattr(error, "snapshot_path", None)  # where a download was stopped
        return Path(stopped) if stopped else None


def cache(home: Path) -> Path:
    """Where the harness downloads to."""
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def missing_bytes(repository: str, home: Path, leave_out: tuple[str, ...]) -> int:
    """Bytes of a repository that are not here yet, asked of the hub.

    Raises:
        BimbaError: it does not answer, or refuses.
    """
    from huggingface_hub import snapshot_download

    with _explained(repository):
        files = snapshot_download(
            repository,
            repo_type="dataset",
            cache_dir=cache(home),
            ignore_patterns=list(leave_out),
            endpoint=os.environ.get("HF_ENDPOINT"),
            dry_run=True,
        )
    return sum(file.file_size or 0 for file in files if file.will_download)


def fetch(repository: str, home: Path, leave_out: tuple[str, ...]) -> Path:
    """Downloads what is not here yet; one that was stopped goes on. Returns the snapshot's folder.

    Raises:
        BimbaError: the hub does not answer, or refuses, or the disk is full.
    """
    from huggingface_hub import snapshot_download

    with _explained(repository):
        return Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                cache_dir=cache(home),
                ignore_patterns=list(leave_out),
                endpoint=os.environ.get("HF_ENDPOINT"),
            )
        )


def ask_for_access(repository: str) -> str:
    """What to do about a gated data set."""
    return f"ask for access on {page(repository)}, then `hf auth login` or set HF_TOKEN"


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError as error:
        whose = "this token's account has no access (yet)" if has_token() else "there is no token"
        raise BimbaError(f"{repository} is gated and {whose}: {ask_for_access(repository)}") from error
    except RepositoryNotFoundError as error:
        raise BimbaError(f"the hub has no data set {repository}, or does not show it: {page(repository)}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        what = "the token is refused: `hf auth login` again" if status in (401, 403) else "try again later"
        raise BimbaError(f"the hub answers {status} for {repository}; {what}") from error
    except OSError as error:  # no network, and a full disk
        cause = error.__cause__ or error
        raise BimbaError(
            f"{repository} cannot be downloaded ({type(cause).__name__}: {first_line(cause)}). Go on where "
            "there is a network, or copy it here and name the folder: --from"
        ) from error
