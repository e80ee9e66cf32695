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
_LAST = np.array([np.iinfo(np.int64).max])
_NO_CELL = np.iinfo(np.int32).max
"""Past the end of any table; a lookup that clips takes it for the last cell."""

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
        share_E = None if codes.one_each else np.repeat(1.0 / np.maximum(codes.count_C, 1), codes.count_C)
        total_V = np.bincount(codes.codes_E, share_E)
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
        self._traits, self._attribute, self._each = traits, attribute, (1.0 - _SMOOTHING) / k
        self._codes_G1 = np.concatenate((taste.codes_G, _LAST))  # every code has a place before the last
        self._scale_G = weight * k * taste.share_G
        self._step_G = self._each * taste.share_G
        # ~q with this place empty: of what was chosen, and of the taste at the places after it
        self._smooth_G = taste.share_G - self._step_G

    def enter(self, rows_C: Rows) -> None:
        codes, groups = self._traits.codes(self._attribute, rows_C), len(self._scale_G)
        most = 1 if codes.one_each else max(1, int(codes.count_C.max(initial=0)))
        cell_E = self._codes_G1.searchsorted(codes.codes_E)
        cell_E[self._codes_G1[cell_E] != codes.codes_E] = _NO_CELL
        # a table holds what each category is worth to an item of one category, then of two, ...; its last cell is 0, for all others
        if codes.one_each:
            self._cell_MC = cell_E[None]
        else:
            cell_E += (codes.count_C[codes.owner_E] - 1) * groups
            self._cell_MC = np.full((most, len(rows_C)), _NO_CELL)
            self._cell_MC[np.arange(len(cell_E)) - codes.start_C[codes.owner_E], codes.owner_E] = cell_E
        # all that `of` reads and writes has one shape, [M * G]: a call of NumPy that has to fit shapes takes twice as long at these sizes
        self._part_MG = np.repeat(self._each / np.arange(1, most + 1), groups)
        self._scale_MG, self._step_MG, self._smooth_MG = (
            a_G if most == 1 else np.concatenate([a_G] * most) for a_G in (self._scale_G, self._step_G, self._smooth_G)
        )
        self._smooth_G = self._smooth_MG[:groups]
        self._table_MG1 = np.zeros(most * groups + 1)
        self._known_MG = self._table_MG1[:-1]
        self._worth_MC = np.empty((most, len(rows_C)))
        self._worth_C = self._worth_MC[0] if most == 1 else np.empty(len(rows_C))

    def of(self) -> Values:
        known_MG = self._known_MG
        np.divide(self._part_MG, self._smooth_MG, known_MG)
        np.log1p(known_MG, known_MG)
        np.multiply(known_MG, self._scale_MG, known_MG)
        self._table_MG1.take(self._cell_MC, None, self._worth_MC, "clip")  # the mode that writes where it is told without a copy
        if len(self._worth_MC) > 1:
            np.add.reduce(self._worth_MC, 0, out=self._worth_C)
        return self._worth_C

    def chose(self, c: int) -> None:
        smooth_MG, groups = self._smooth_MG, len(self._smooth_G)
        np.subtract(smooth_MG, self._step_MG, smooth_MG)
        for cell in self._cell_MC[:, c].tolist():
            if cell < len(smooth_MG):
                share = self._each / (cell // groups + 1)
                for place in range(cell % groups, len(smooth_MG), groups):
                    smooth_MG[place] += share


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
