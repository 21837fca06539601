"""The command itself: which benchmarks, which HF_HOME, what is printed."""

from __future__ import annotations

import os
from pathlib import Path

from bimba.types import BimbaError
from lmms_eval_plugin.prepare.home import choose_home
from lmms_eval_plugin.prepare.hub import is_shut
from lmms_eval_plugin.prepare.options import Options
from lmms_eval_plugin.prepare.sources import ALL, SOURCES


def run(
    benchmark: str,
    hf_home: str | None = None,
    origin: Path | None = None,
    dry_run: bool = False,
    offline: bool = False,
    subtitles: bool = False,
    probe: bool = False,
    json_file: str | None = None,
) -> bool:
    """Prepares a benchmark, or all seven, and prints a table for each; True if everything is ready.

    Args:
        origin: a folder with videos of this benchmark, or archives of them; absolute.

    Raises:
        BimbaError: HF_HOME is not a folder, or ``json_file`` cannot be written.
    """
    home = choose_home(hf_home)
    named = os.environ.get("HF_HOME", "")
    offline = offline or is_shut()
    os.environ["HF_HOME"] = str(home)  # before the first import of a library that reads it
    if offline or dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"

    from datasets.utils.logging import disable_progress_bar, set_verbosity_error
    from loguru import logger

    from bimba.report.files import write_json
    from lmms_eval_plugin.prepare.report import as_json, print_reports
    from lmms_eval_plugin.prepare.run import prepare

    logger.disable("lmms_eval")  # its modules say at every import what else could be installed
    set_verbosity_error()
    disable_progress_bar()
    options = Options(home, origin, dry_run, offline, subtitles, probe, named, chosen=hf_home is not None)
    reports = []
    for name in ALL if benchmark == "all" else [benchmark]:
        reports.append(prepare(SOURCES[name], options))
        print_reports(reports[-1:])
    if json_file is not None:
        try:
            write_json(Path(json_file), as_json(reports))
        except OSError as error:
            why = error.strerror or error
            raise BimbaError(f"{json_file} cannot be written ({why}); give another --json.") from error
    return all(report.ready for report in reports)
