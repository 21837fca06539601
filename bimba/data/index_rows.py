"""What an index holds of each row, and the account of the rows that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from bimba.data.mixture import Source
from bimba.data.rows import IMAGE, TEXT, VIDEO, BrokenFile, kind_of_number, media_of, problem_of, rows_of

MODALITIES = (TEXT, VIDEO, IMAGE, "multi_image")
_KEPT = 10_000  # problems that an index keeps in words; the others are counted
_BATCH_ROWS = 20_000
SCHEMA = pa.schema(
    [
        ("row", pa.large_binary()),  # its JSON
        ("words", pa.int32()),  # of its conversation
        ("bytes", pa.int32()),  # of its conversation, in UTF-8
        ("turns", pa.int32()),
        ("media", pa.int32()),  # how many videos or images
        ("modality", pa.int8()),  # position in MODALITIES
        ("source", pa.int32()),  # position in Index.sources
        ("file", pa.int32()),  # position in Mixture.sources
        ("number", pa.int64()),  # of the row in its file, see rows.place
    ]
)


class RowTable:
    """Reads annotation files and keeps the account of what is wrong with them."""

    def __init__(self, literal_tags: bool):
        self.literal_tags = literal_tags
        self.sources: dict[str, int] = {}
        self.problems = _Problems()
        self.duplicates = _Problems()

    def about(self) -> dict[str, Any]:
        return {
            "sources": list(self.sources),
            "problems": self.problems.first,
            "num_problems": self.problems.total,
            "duplicates": self.duplicates.first,
            "num_duplicates": self.duplicates.total,
        }

    def batches(self, position: int, source: Source) -> Iterator[pa.RecordBatch]:
        try:
            rows = list(rows_of(source.path))
        except BrokenFile as error:
            self.problems.add(position, None, error.why)
            return
        if not rows:
            self.problems.add(position, None, "no rows. Expected at least one conversation.")
        taken = source.take.rows(len(rows), position)
        ids: dict[Any, int] = {}
        for start in range(0, len(taken), _BATCH_ROWS):
            columns: list[list[Any]] = [[] for _ in SCHEMA]
            for i in taken[start : start + _BATCH_ROWS]:
                number, row = rows[i]
                if values := self._values(position, source, number, row, ids):
                    for column, value in zip(columns, values):
                        column.append(value)
            yield pa.record_batch(
                [pa.array(column, field.type) for column, field in zip(columns, SCHEMA)], schema=SCHEMA
            )

    def _values(self, position: int, source: Source, number: int, row: Any, ids: dict[Any, int]) -> list[Any] | None:
        why = row.why if isinstance(row, BrokenFile) else problem_of(row, self.literal_tags)
        if why is not None:
            self.problems.add(position, number, why)
            return None
        name = row.get("id")
        if name is not None and ids.setdefault(str(name), number) != number:
            first = f"{kind_of_number(source.path)} {ids[str(name)]}"
            self.duplicates.add(position, number, f"the id {name!r} is that of {first} too.")
        texts = [turn["value"] for turn in row["conversations"]]
        kind, paths = media_of(row)
        several = kind == IMAGE and len(paths) > 1
        origin = row.get("data_source") or source.path.stem
        return [
            json.dumps(row).encode(),
            sum(len(text.split()) for text in texts),
            sum(len(text.encode()) for text in texts),
            len(texts),
            len(paths),
            MODALITIES.index("multi_image" if several else kind),
            self.sources.setdefault(origin, len(self.sources)),
            position,
            number,
        ]


class _Problems:
    """The first of many, and how many there were."""

    def __init__(self) -> None:
        self.first: list[tuple[int, int | None, str]] = []
        self.total = 0

    def add(self, file: int, number: int | None, why: str) -> None:
        self.total += 1
        if len(self.first) < _KEPT:
            self.first.append((file, number, why))
