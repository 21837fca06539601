"""Odd documents of a data set, found when it is loaded: before the first forward, and all at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from loguru import logger

from bimba.data.prompt import LETTERS
from bimba.inference.schedule import listing
from lmms_eval_plugin.tasks.published import Asked

Documents = TypeVar("Documents", bound=Iterable[dict[str, Any]])


def checked(
    task: str, documents: Documents, read: Callable[[dict[str, Any]], Asked], each_once: bool = False
) -> Documents:
    """The documents as they are, or the end of the run; a task's ``process_docs``.

    A document without a question, or with fewer than two options or more than there are letters, cannot be asked. One
    that comes twice, and one whose right answer is no letter of its options, is named in a warning; the latter counts
    as wrong (``no_reference``).

    Args:
        each_once: documents that come twice end the run, too.

    Raises:
        SystemExit: documents cannot be asked, each of them named. The harness calls this from code that repeats every
            other error five times and then hides it; of this one both its command and ``evaluate.py`` show the text.
    """
    unaskable, repeated, without = [], [], []
    seen: set[Hashable] = set()
    for number, doc in enumerate(documents):
        asked = read(doc)
        if not asked.question.strip():
            unaskable.append(f"document {number} (no question)")
        elif not 2 <= len(asked.lines) <= len(LETTERS):
            unaskable.append(f"document {number} ({len(asked.lines)} options)")
        elif asked.right is not None and asked.right not in asked.letters:
            without.append(f"document {number} ({asked.right or 'none'} of {len(asked.lines)} options)")
        if asked.identity in seen:
            repeated.append(f"document {number} ({asked.identity})")
        seen.add(asked.identity)
    if unaskable:
        sys.exit(
            f"Task {task}: {len(unaskable)} documents cannot be asked: {listing(unaskable)}. Expected a question with "
            f"2 to {len(LETTERS)} options in each; mend the data set. Nothing was evaluated."
        )
    if repeated and each_once:
        sys.exit(
            f"Task {task}: {len(repeated)} documents come twice: {listing(repeated)}. Expected each once; mend the "
            "data set. Nothing was evaluated."
        )
    if repeated:
        logger.warning(f"Task {task}: {len(repeated)} documents come twice, and count twice: {listing(repeated)}")
    if without:
        logger.warning(
            f"Task {task}: the right answer of {len(without)} documents is no letter of their options, so they count "
            f"as wrong: {listing(without)}"
        )
    return documents
