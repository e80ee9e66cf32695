"""What an item is worth besides its relevance: terms that are added up for every candidate at every position of a list.

Legend: C candidates, E categories of candidates (each candidate's one after another), G categories of a taste, M most categories of one
candidate, D dimensions.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.traits import Codes, Traits

_SMOOTHING = 0.01

Values = NDArray[np.float64]
Rows = NDArray[np.integer]
Places = NDArray[np.int64]
"""Places among the candidates."""
Barred = Places | NDArray[np.bool_]
"""The same, or a mask [C] over them."""


class Part(Protocol):
    """What depends on the list so far: a gain, a mask, or both.

    Attributes:
        adds: it is a gain: `of` is asked at every position.
    """

    adds: bool

    def enter(self, rows_C: Rows) -> Barred | None:
        """Take up candidates: the first ones, or further ones after those are used up. Returns those barred by the list so far."""
        ...

    def of(self) -> Values | None:
        """What is added to each candidate's value; None = nothing."""
        ...

    def chose(self, c: int) -> Barred | None:
        """Candidate c joins the list. Returns candidates barred from now on."""
        ...


def freshness(created_C: Values, fresh_days: float, now: int) -> Values:
    """2^(-age / fresh_days) at `now` (microseconds UTC), 1 for what is yet to come, 0 where the time is unknown.

    >>> freshness(np.array([0.0, 86_400e6, np.nan]), 1.0, 86_400_000_000).tolist()
    [0.5, 1.0, 0.0]
    """
    age_days_C = np.maximum((now - created_C) / 86_400_000_000, 0.0)
    return np.nan_to_num(np.exp2(-age_days_C / fresh_days), nan=0.0)


@dataclass(frozen=True)
class Taste:
    """A history's share of each category: an item counts once and divides its 1 among its categories (Steck 2018, equation 2).

    Attributes:
        codes_G: categories, ascending.
        share_G: above 0, summing to 1.
    """

    codes_G: NDArray[np.int64]
    share_G: Values

    @classmethod
    def of(cls, codes: Codes) -> "Taste | None":
        """Of the items of a history; None where none of them has a category."""
        if not len(codes.codes_E):
            return None
        total_V = np.bincount(codes.codes_E, np.repeat(1.0 / np.maximum(codes.count_C, 1), codes.count_C))
        codes_G = np.flatnonzero(total_V)
        return cls(codes_G, total_V[codes_G] / total_V.sum())


class Calibration:
    """How far an item brings the list's categories to the shares of a taste.

    With p the taste, q the list's shares and ~q = 0.99 q + 0.01 p, a list is miscalibrated by C_KL = sum_g p_g log(p_g / ~q_g) (Steck
    2018, equation 6). The gain of an item is weight * k * (what C_KL falls by as it joins), where q is of the whole list of k: places
    still open count as filled in the taste's own shares. So the first items, which need not make a list by themselves, are hardly moved,
    and what is missing weighs more the fewer places are left; at the last one this is Steck's own objective.
    """

    adds = True

    def __init__(self, traits: Traits, attribute: str, taste: Taste, weight: float, k: int) -> None:
        self._traits, self._attribute, self._taste, self._k = traits, attribute, taste, k
        self._scale_G = weight * k * taste.share_G
        self._step_G = ((1.0 - _SMOOTHING) / k) * taste.share_G
        # ~q with this place empty: of what was chosen, and of the taste at the places after it
        self._smooth_G = taste.share_G - self._step_G

    def enter(self, rows_C: Rows) -> None:
        codes = self._traits.codes(self._attribute, rows_C)
        groups, most = len(self._taste.codes_G), max(1, int(codes.count_C.max(initial=0)))
        place_E = np.minimum(np.searchsorted(self._taste.codes_G, codes.codes_E), groups - 1)
        known_E = self._taste.codes_G[place_E] == codes.codes_E
        # row m of a table holds what each category is worth to an item of m + 1 categories; its last column is 0, for all others
        cell_E = np.repeat((codes.count_C - 1) * (groups + 1), codes.count_C) + np.where(known_E, place_E, groups)
        slot_E = np.arange(len(cell_E)) - np.repeat(codes.count_C.cumsum() - codes.count_C, codes.count_C)
        self._cell_MC = np.full((most, len(rows_C)), groups)
        self._cell_MC[slot_E, np.repeat(np.arange(len(rows_C)), codes.count_C)] = cell_E
        self._part_M1 = ((1.0 - _SMOOTHING) / self._k / np.arange(1, most + 1))[:, None]
        self._table_MG = np.zeros((most, groups + 1))
        self._known_MG = self._table_MG[:, :-1]

    def of(self) -> Values:
        gain_MG = self._part_M1 / self._smooth_G
        np.log1p(gain_MG, out=gain_MG)
        np.multiply(gain_MG, self._scale_G, out=self._known_MG)
        worth_MC = self._table_MG.take(self._cell_MC)
        return np.asarray(worth_MC[0] if len(worth_MC) == 1 else np.add.reduce(worth_MC, 0))

    def chose(self, c: int) -> None:
        groups = len(self._smooth_G)
        self._smooth_G -= self._step_G
        for cell in self._cell_MC[:, c].tolist():
            row, column = divmod(cell, groups + 1)
            if column < groups:
                self._smooth_G[column] += (1.0 - _SMOOTHING) / (self._k * (row + 1))


class Reach:
    """What an item lacks to be seen, added to its value at the first positions of a list; see serving.reach. Further down, where nobody is
    reached, items stand where their relevance puts them."""

    adds = True

    def __init__(self, traits: Traits, weight: float, first: int) -> None:
        self._traits, self._weight, self._left = traits, weight, first

    def enter(self, rows_C: Rows) -> None:
        self._gain_C = self._weight * self._traits.lacking(rows_C)

    def of(self) -> Values | None:
        return self._gain_C if self._left > 0 else None

    def chose(self, c: int) -> None:
        self._left -= 1


class Nearness:
    """How near a candidate is to the list. The mean cosine with its items is taken off a candidate's value, which raises the mean distance
    of pairs, ILD (Smyth and McClave 2001); and a candidate whose cosine with any of them is at least `same` is barred.

    Args:
        weight: of what is taken off; 0 = nothing.
        same: None = nothing is barred.
    """

    def __init__(self, traits: Traits, weight: float, same: float | None) -> None:
        self._traits, self._weight, self.adds = traits, weight, weight > 0
        # the cosine of equal vectors may come out a rounding below 1
        self._same = None if same is None else min(same, 1 - 1e-6)
        self._chosen: list[NDArray[np.float32]] = []

    def enter(self, rows_C: Rows) -> Barred | None:
        self._unit_CD = self._traits.unit_vectors(rows_C)
        if not self._chosen:
            self._sum_C = np.zeros(len(rows_C))
            return None
        near_CN = self._unit_CD @ np.stack(self._chosen, 1)
        self._sum_C = near_CN.sum(1, dtype=np.float64)
        return None if self._same is None else near_CN.max(1) >= self._same

    def of(self) -> Values | None:
        return (-self._weight / len(self._chosen)) * self._sum_C if self._chosen else None

    def chose(self, c: int) -> Barred | None:
        self._chosen.append(self._unit_CD[c])
        near_C = self._unit_CD @ self._unit_CD[c]
        self._sum_C += near_C
        return None if self._same is None else near_C >= self._same
