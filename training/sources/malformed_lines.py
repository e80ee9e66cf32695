"""Lines of a CSV file that do not have as many fields as its header: put where they stood, as rows of nulls, with their line's number."""

import io
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

from training.sources.base import MALFORMED_LINE


class _Wrong(NamedTuple):
    row: int
    fields: str
    text: str


class MalformedLines:
    """What the reader of one file skips. It must read without threads: only then does it know the rows' numbers.

    Args:
        path: of the file.
        quoted: whether quotes are more than plain characters in it.
    """

    def __init__(self, path: Path, quoted: bool) -> None:
        self._path = path
        self._waiting: deque[_Wrong] = deque()
        self._starts = _record_starts(path, quoted)
        self._start = (0, 0, "")
        self._row = 0

    def skip(self, row: pacsv.InvalidRow) -> str:
        """Arrow's handler."""
        # its number counts from 1 and counts the header; `row` counts from 0, as places in the log do
        fields = f"{row.actual_columns} fields, expected {row.expected_columns}"
        self._waiting.append(_Wrong(row.number - 2, fields, row.text))
        return "skip"

    def between(self, good: pa.Table) -> pa.Table:
        """The next rows of the file, with those that were skipped before and among them; MALFORMED_LINE says what is wrong with these."""
        wrong: list[_Wrong] = []
        places: list[int] = []
        while self._waiting and (place := self._waiting[0].row - self._row - len(wrong)) < len(good):
            wrong.append(self._waiting.popleft())
            places.append(place)
        return self._mixed(good, wrong, places)

    def after(self, schema: pa.Schema) -> pa.Table:
        """Those behind the last good row."""
        wrong = [*self._waiting]
        self._waiting.clear()
        return self._mixed(schema.empty_table(), wrong, [0] * len(wrong))

    def _mixed(self, good: pa.Table, wrong: list[_Wrong], places: list[int]) -> pa.Table:
        self._row += len(good) + len(wrong)
        if not wrong:
            return good.append_column(MALFORMED_LINE, pa.nulls(len(good), pa.string()))
        from_n = np.insert(np.arange(len(good)), places, -1)
        told = np.full(len(from_n), None, object)
        told[from_n < 0] = [self._told(one) for one in wrong]
        mixed = good.take(pa.array(from_n, mask=from_n < 0))
        return mixed.append_column(MALFORMED_LINE, pa.array(told, pa.string()))

    def _told(self, wrong: _Wrong) -> str:
        """Without the line's text, which holds the user's id."""
        while self._start[0] < wrong.row + 2 and (found := next(self._starts, None)) is not None:
            self._start = found
        record, line, text = self._start
        # a stray quote hides where records begin: then no number is better than a wrong one
        known = record == wrong.row + 2 and text == wrong.text
        return f"{wrong.fields}; line {line} of {self._path.name}" if known else wrong.fields


def _record_starts(path: Path, quoted: bool) -> Iterator[tuple[int, int, str]]:
    """(record, line, text of the line) of each record, both from 1; a blank line is no record, and quotes may hold line ends."""
    record, open_quote = 0, False
    with io.BufferedReader(pa.input_stream(path, compression="detect")) as file:
        for line, raw in enumerate(file, start=1):
            text = raw.rstrip(b"\r\n")
            if text and not open_quote:
                record += 1
                yield record, line, text.decode(errors="replace")
            if quoted and text.count(b'"') % 2:
                open_quote = not open_quote
