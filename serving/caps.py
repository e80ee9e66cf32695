"""Caps: how many items of a list may share a value of an attribute.

Legend: C candidates, E values of candidates (each candidate's one after another).
"""

import numpy as np

from serving.gains import Barred, Rows
from serving.traits import Traits


class Cap:
    """At most `most` items of a list with the same value of an attribute. An item without a value is barred by nothing, one with several
    by each of them."""

    adds = False

    def __init__(self, traits: Traits, attribute: str, most: int) -> None:
        self._traits, self._attribute, self._most = traits, attribute, most
        self._held: dict[int, int] = {}

    def enter(self, rows_C: Rows) -> Barred | None:
        codes = self._traits.codes(self._attribute, rows_C)
        self._code_E, self._owner_E = codes.codes_E, np.repeat(np.arange(len(rows_C)), codes.count_C)
        self._end_C = np.concatenate([[0], codes.count_C.cumsum()]).tolist()
        full = [code for code, held in self._held.items() if held >= self._most]
        return self._owner_E[np.isin(self._code_E, full)] if full else None

    def of(self) -> None:
        return None

    def chose(self, c: int) -> Barred | None:
        barred = None
        for code in self._code_E[self._end_C[c] : self._end_C[c + 1]].tolist():
            held = self._held[code] = self._held.get(code, 0) + 1
            if held == self._most:
                filled = self._owner_E[self._code_E == code]
                barred = filled if barred is None else np.concatenate([barred, filled])
        return barred
