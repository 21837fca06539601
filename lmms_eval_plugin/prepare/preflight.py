"""Before an evaluation: would the harness find its data? A few glances, where ``bimba prepare`` looks at every video.

The harness itself tries five times, hides why it failed in a RetryError, and says nothing before it downloads hundreds
of gigabytes to a wrong HF_HOME.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bimba.types import BimbaError
from lmms_eval_plugin.prepare import hub
from lmms_eval_plugin.prepare.home import choose_home, elsewhere, folder_of
from lmms_eval_plugin.prepare.rows import cache_folder
from lmms_eval_plugin.prepare.rows import folder_of as cached
from lmms_eval_plugin.prepare.sources import Source, hint, sources_of, table_of


def check_data(tasks: Iterable[str]) -> None:
    """Of tasks whose data is on the hub, for which HF_HOME must be set; of others nothing.

    Warns if the harness is going to download.

    Raises:
        BimbaError: HF_HOME is not absolute; or something is not here and cannot be fetched, or everything is and the
            harness still wants a token.
    """
    sources = [source for source in sources_of(tasks) if table_of(source) is not None]
    if not sources:
        return
    home = choose_home(None)
    offline = hub.is_shut()
    cut_off = "HF_HUB_OFFLINE is set" if offline else "" if hub.has_token() else "there is no token to download it with"
    missing = {source: folders for source in sources if (folders := _missing(source, home))}
    if missing:
        names = ", ".join(source.name for source in missing)
        expected = ", ".join(str(folder) for folders in missing.values() for folder in folders)
        message = f"No data of {names} in HF_HOME, {home} (expected {expected}){_elsewhere(missing, home)}"
        what_helps = hint(source.task for source in missing)
        if cut_off:
            raise BimbaError(f"{message}, and {cut_off}{'' if offline else _gated(missing)}.{what_helps}")

        from loguru import logger

        logger.warning(f"{message}: the harness is going to download it.{what_helps}")
    elif not offline and cut_off:
        raise BimbaError(
            f"The data of {', '.join(source.name for source in sources)} is here, but the harness asks the hub all the "
            "same, and there is no token. Set HF_HUB_OFFLINE=1, or `hf auth login`."
        )


def _elsewhere(sources: Iterable[Source], home: Path) -> str:
    for source in sources:
        if (other := elsewhere(source, home)) is not None:
            return f"; {other} has data of {source.name}: is that the one you mean?"
    return ""


def _gated(sources: Iterable[Source]) -> str:
    tables = [table_of(source) for source in sources if source.gated]
    return "".join(
        f"; {table.repository} is gated: {hub.ask_for_access(table.repository)}" for table in tables if table
    )


def _missing(source: Source, home: Path) -> list[Path]:
    """The folders without which the harness asks the hub."""
    table = table_of(source)
    folders = [folder_of(source, home), *([cached(table, cache_folder(home))] if table else [])]
    return [folder for folder in folders if not folder.is_dir()]
