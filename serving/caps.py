"""Caps: how many items of a list may share a value of an attribute.

Legend: C candidates, E values of candidates (each candidate's one after another).
"""

from collections import Counter

import numpy as np

from serving.gains import Places, Rows
from serving.traits import Traits


class Cap:
    """At most `most` items of a list with the same value of an attribute. An item without a value is barred by nothing, one with several
    by each of them."""

    def __init__(self, traits: Traits, attribute: str, most: int) -> None:
        self._traits, self._attribute, self._most = traits, attribute, most
        self._held: Counter[int] = Counter()

    def enter(self, rows_C: Rows) -> Places | None:
        codes = self._traits.codes(self._attribute, rows_C)
        self._code_E, self._owner_E = codes.codes_E, np.repeat(np.arange(len(rows_C)), codes.count_C)
        self._end_C = codes.count_C.cumsum().tolist()
        full = [code for code, held in self._held.items() if held >= self._most]
        return self._owner_E[np.isin(self._code_E, full)] if full else None

    def of(self) -> None:
        return None

    def chose(self, c: int) -> Places | None:
        barred = None
        for code in self._code_E[self._end_C[c - 1] if c else 0 : self._end_C[c]].tolist():
            self._held[code] += 1
            if self._held[code] == self._most:
                filled = self._owner_E[self._code_E == code]
                barred = filled if barred is None else np.concatenate([barred, filled])
        return barred
