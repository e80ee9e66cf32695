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
        self._codes = codes = self._traits.codes(self._attribute, rows_C)
        full = [code for code, held in self._held.items() if held >= self._most]
        return codes.owner_E[np.isin(codes.codes_E, full)] if full else None

    def of(self) -> None:
        return None

    def chose(self, c: int) -> Barred | None:
        barred, codes = None, self._codes
        start = codes.start_C.item(c)
        for code in codes.codes_E[start : start + codes.count_C.item(c)].tolist():
            held = self._held[code] = self._held.get(code, 0) + 1
            if held == self._most:
                filled = codes.owner_E[codes.codes_E == code]
                barred = filled if barred is None else np.concatenate([barred, filled])
        return barred
