"""Checkpoints on the Hugging Face hub, and why one cannot be had."""

from __future__ import annotations

from pathlib import Path

from bimba.types import BimbaError, first_line


def from_hub(name: str) -> Path:
    """Downloads what is not here yet of a model, and returns its folder.

    Raises:
        BimbaError: there is no such model, it is not for everybody, or the hub cannot be reached.
    """
    from huggingface_hub import constants, get_token, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        patterns = ["*.json", "*.safetensors", "*.bin", "*.txt", "*.jinja"]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except GatedRepoError as error:
        token = "this token's account has no access yet" if get_token() else "there is no token here"
        why = f"it is gated, and {token}. Ask for access on its page, then `hf auth login` or set HF_TOKEN"
        cause: Exception = error
    except RepositoryNotFoundError as error:
        why = "there is none of this name, or it is private. Check the name, or log in: `hf auth login`"
        cause = error
    except (HfHubHTTPError, HFValidationError) as error:
        why, cause = f"{first_line(error).rstrip('.')}. Try again later, or give a local folder", error
    except OSError as error:  # no network, or none allowed; a full disk
        if constants.HF_HUB_OFFLINE:
            why = "HF_HUB_OFFLINE is set, and it was not downloaded before. Unset that, or give a local folder"
        else:
            reason = first_line(error.__cause__ or error).rstrip(".")
            why = f"the hub cannot be reached ({reason:.150}). Go on where there is a network, or give a local folder"
        cause = error
    raise BimbaError(
        f"There is no checkpoint folder {name}, and as a model of the Hugging Face hub it cannot be had: {why}."
    ) from cause
