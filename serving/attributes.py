"""The catalogue turned around: for each declared attribute, which rows have which value. Mapped from the bundle, shared by processes.

Legend: I catalogue rows, V values, W bitmap bytes, N rows of a list.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serving.index.rowset import RowSet, flipped
from towers.columns import FIRST_ROW
from towers.vocab import Vocabulary


@dataclass(frozen=True)
class ValueLists:
    """Rows by value of a categorical or multi_categorical attribute.

    Attributes:
        name: of the attribute.
        size: I.
        vocabulary: its values.
        offsets_V: int64 [V + 1]; rows of value v are rows_N[offsets_V[v] : offsets_V[v + 1]], ascending.
        rows_N: int32.
        place_V: int32, row of `bits_BW` that holds a frequent value's bitmap, -1 for the others.
        bits_BW: bitmaps.
    """

    name: str
    size: int
    vocabulary: Vocabulary
    offsets_V: NDArray[np.int64]
    rows_N: NDArray[np.int32]
    place_V: NDArray[np.int32]
    bits_BW: NDArray[np.uint8]

    def sets(self, values: Sequence[str | None]) -> list[RowSet]:
        """The rows of each value; an unknown one has none and is left out."""
        known = np.unique(self.vocabulary.rows(values)) - FIRST_ROW
        return [self.rows_of(v) for v in known[known >= 0].tolist()]

    def rows_of(self, v: int) -> RowSet:
        """The rows of value v."""
        start, stop = int(self.offsets_V[v]), int(self.offsets_V[v + 1])
        place = int(self.place_V[v])
        return RowSet(self.size, stop - start, self.rows_N[start:stop], self.bits_BW[place] if place >= 0 else None, key=f"{self.name}/{v}")


@dataclass(frozen=True)
class OrderedValues:
    """Rows by a number or a time.

    Attributes:
        size: I.
        is_time: values are microseconds UTC.
        values_N: float64, ascending; items without a value are left out.
        rows_N: int32, their rows.
        step: every `step` values a bitmap of all rows up to there is kept.
        bits_CW: these bitmaps: bits_CW[c] holds rows_N[: c * step].
    """

    size: int
    is_time: bool
    values_N: NDArray[np.float64]
    rows_N: NDArray[np.int32]
    step: int
    bits_CW: NDArray[np.uint8]

    def between(self, low: float, high: float) -> RowSet:
        """Rows with low <= value < high."""
        start, stop = np.searchsorted(self.values_N, (low, high)).tolist()
        if stop <= start:
            return RowSet(self.size, 0, np.empty(0, np.int64), None)
        if stop - start < self.size // 64:
            return RowSet(self.size, stop - start, np.sort(self.rows_N[start:stop]), None)
        first, last = self._nearest(start), self._nearest(stop)
        ends = (sorted((start, first * self.step)), sorted((stop, last * self.step)))
        between = np.concatenate([self.rows_N[low_end:high_end] for low_end, high_end in ends])  # one that is named twice turns back
        return RowSet(self.size, stop - start, None, flipped(self.bits_CW[first] ^ self.bits_CW[last], between))

    def _nearest(self, count: int) -> int:
        """Which of the bitmaps kept differs least from that of the first `count` rows."""
        return min(round(count / self.step), len(self.bits_CW) - 1)


Attributes = Mapping[str, ValueLists | OrderedValues]
