"""What a reader of a sweep's report has to know before its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bimba.report.sweep.cell import Cell
from bimba.report.sweep.summary import Sweep

LISTED = 8  # comparisons that there are not


def notices(sweep: Sweep) -> list[str]:
    """The grave ones begin with a word in capitals."""
    found = []
    if sweep.others:
        found.append(f"INCOMPLETE: {len(sweep.others)} cells are not finished; they are listed under “Cells”.")
    found += _code(sweep.cells)
    for cell in sweep.cells:
        found += [f"DOUBTFUL: {cell.name}: {what}" for what in cell.trouble]
    found += [
        f"TWICE: {old.name} has the settings and the seed of {new}, which is newer and counts instead."
        for old, new in sweep.replaced
    ]
    if not sweep.scores:
        found.append("NO ACCURACY: no cell has an evaluation; give train.py evaluate=..., or run evaluate.py.")
    own = [score for score in sweep.scores if score.estimate.over == "seeds"]
    if own:
        names = ", ".join(dict.fromkeys(score.label.name for score in own))
        found.append(f"OTHER QUESTIONS: the seeds of {names} were not asked the same; intervals go by seeds alone.")
    alone = {group.label: group.label.name for group in sweep.groups if len(group.cells) == 1}
    single = list(alone.values())
    single += dict.fromkeys(  # an evaluation that one of several cells has
        f"{score.label.name} in {score.evaluation}"
        for score in sweep.scores
        if score.estimate.seeds == 1 and score.label not in alone
    )
    if single:
        found.append(
            f"ONE SEED: {', '.join(single)}. Their intervals hold for other questions, not for other training runs."
        )
    if sweep.apart:
        more = f"; and {len(sweep.apart) - LISTED} more" if len(sweep.apart) > LISTED else ""
        found.append(f"NOT COMPARED with {sweep.baseline}: {'; '.join(sweep.apart[:LISTED])}{more}.")
    return found


def code_name(version: dict[str, Any]) -> str:
    """The commit in short, or the release."""
    git = version.get("git")
    if git:
        return f"{str(git.get('commit'))[:10]}{' with uncommitted changes' if git.get('dirty') else ''}"
    return f"bimba {version['bimba']}" if version.get("bimba") else "unknown"


def code_of(cell: Cell) -> str:
    """What trained a cell, one after the other where it was resumed with other code."""
    return " then ".join(_codes(cell))


def _codes(cell: Cell) -> list[str]:
    return list(dict.fromkeys(map(code_name, [*(cell.record.get("earlier_code") or []), cell.version])))


def _code(cells: Sequence[Cell]) -> list[str]:
    """Whether the cells were made by one and the same code, on one kind of machine."""
    found = []
    by_code = _by([code_of(cell) for cell in cells], cells)
    if (number := len({name for cell in cells for name in _codes(cell)})) > 1:
        told = "; ".join(f"{name}: {', '.join(members)}" for name, members in by_code.items())
        found.append(f"MIXED CODE: the cells were made by {number} versions of the code. {told}.")
    elif any((cell.version.get("git") or {}).get("dirty") for cell in cells):
        found.append("UNCOMMITTED: the code had changes that no commit has; whether all cells had the same is unknown.")
    elif "unknown" in by_code:
        found.append("UNKNOWN CODE: the cells do not say which version of the code made them.")
    packages = sorted({name for cell in cells for name in cell.version.get("packages", {})})
    for name in packages:
        versions = _by([str(cell.version.get("packages", {}).get(name, "none")) for cell in cells], cells)
        if len(versions) > 1:
            told = "; ".join(f"{version}: {', '.join(members)}" for version, members in versions.items())
            found.append(f"MIXED PACKAGES: {name} {told}.")
    devices = _by([", ".join(cell.version.get("devices", [])) for cell in cells], cells)
    if len(devices) > 1:
        found.append(f"OTHER DEVICES: {' | '.join(devices)}; do not compare the times.")
    return found


def _by(names: Sequence[str], cells: Sequence[Cell]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, cell in zip(names, cells):
        found.setdefault(name, []).append(cell.name)
    return found
