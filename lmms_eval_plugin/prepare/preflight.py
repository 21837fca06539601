"""Before an evaluation: would the harness find its data? A few glances, where ``bimba prepare`` looks at every video.

The harness itself tries five times, hides why it failed in a RetryError, and says nothing before it downloads hundreds
of gigabytes to a wrong HF_HOME.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from bimba.types import BimbaError
from lmms_eval_plugin.prepare import hub
from lmms_eval_plugin.prepare.home import elsewhere, folder_of
from lmms_eval_plugin.prepare.rows import cache_folder
from lmms_eval_plugin.prepare.rows import folder_of as cached
from lmms_eval_plugin.prepare.sources import Source, hint, sources_of, table_of


def check_data(tasks: Iterable[str]) -> None:
    """Of tasks whose data is on the hub; HF_HOME must be set. Warns if the harness is going to download.

    Raises:
        BimbaError: something is not here and cannot be fetched, or everything is and the harness still wants a token.
    """
    home = Path(os.environ["HF_HOME"]).absolute()
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    for source in sources_of(tasks):
        missing = _missing(source, home)
        where = f"HF_HOME is {home}"
        if (other := elsewhere(source, home)) is not None:
            where += f"; {other} has data of {source.name}: is that the one you mean?"
        if missing and offline:
            raise BimbaError(f"No {' and no '.join(missing)}, and HF_HUB_OFFLINE is set. {where}.{_prepare(source)}")
        if missing and not hub.has_token():
            table = table_of(source)
            gated = f" To get one, {hub.ask_for_access(table.repository)}." if table and source.gated else ""
            raise BimbaError(
                f"No {' and no '.join(missing)}, and no token, without which the harness downloads nothing.{gated} "
                f"{where}.{_prepare(source)}"
            )
        if not missing and not offline and table_of(source) is not None and not hub.has_token():
            raise BimbaError(
                f"The data of {source.name} is here, but the harness asks the hub all the same, and there is no token. "
                "Set HF_HUB_OFFLINE=1, or `hf auth login`."
            )
        if missing:
            from loguru import logger

            logger.warning(
                f"No {' and no '.join(missing)}: the harness is going to download. {where}.{_prepare(source)}"
            )


def _missing(source: Source, home: Path) -> list[str]:
    """The folders without which the harness asks the hub."""
    table = table_of(source)
    if table is None:
        return []  # its task reads one folder, and says itself when that is not there
    folders = [folder_of(source, home), cached(table, cache_folder(home))]
    return [str(folder) for folder in folders if not folder.is_dir()]


def _prepare(source: Source) -> str:
    return hint([source.task])
