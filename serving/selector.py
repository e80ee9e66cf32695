"""From candidates to the list that is shown: the one place where an order is decided after the search.

One greedy loop: at each position every candidate has a value, its relevance and what the gains add to it; masks take candidates out; the
best is taken or, with a temperature, one is drawn. Because the draw is inside the loop, the probability of each choice given those before
it is exact whatever gains and masks are on.

Legend: C candidates, k positions.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from serving.gains import Part, Places, Rows, Values
from serving.policy import Policy

DEEPEST = 7
"""Searches for candidates at most before everything that is left is ranked once; each asks for twice as many as the one before, none of
them twice."""
_BLOCK_ROWS = 16_384
"""Of what is left, so many are taken up at once. No search asks for more either: each position looks at all that were taken up, each is
compared with the whole list, and a few such searches take longer than to rank everything."""

ITEMS, POLICY = "items", "policy"

_SAFE = 300.0
"""Values of at most so many temperatures have an exponential as they are."""


@dataclass(frozen=True)
class Candidates:
    """Catalogue rows and scores, best first, no duplicates: int [C], float32 [C]. Those that give way to others come last, whatever they
    score."""

    rows_C: NDArray[np.integer]
    scores_C: NDArray[np.float32]


@dataclass(frozen=True)
class Selection:
    """The list: rows, scores, and the probability of each choice given those before it (1 where nothing is drawn).

    Attributes:
        considered: the candidates that it was chosen from, without those that a deeper search found and the list barred already.
        shortage: why there are fewer than k: `items`, no more may be shown; `policy`, its masks leave none. "" where there are k.
    """

    rows_k: NDArray[np.integer]
    scores_k: NDArray[np.float32]
    propensities_k: NDArray[np.float64]
    considered: Candidates
    shortage: str = ""


Deeper = Callable[[int, Rows], Candidates]
"""The best candidates besides some rows: how many, and the rows."""


@dataclass(frozen=True)
class Parts:
    """What steers a list, or the lists of a page one after another.

    Attributes:
        standing: gains that do not depend on the list: [C] of rows.
        page: gains and masks that a next list goes on with.
        each: makes those that every list begins anew.
        items: of the whole catalogue.
    """

    standing: Callable[[Rows], Values]
    page: Sequence[Part]
    each: Callable[[], Sequence[Part]]
    items: int


def select(candidates: Candidates, policy: Policy, parts: Parts | None = None, deeper: Deeper | None = None) -> Selection:
    """Choose and order.

    Args:
        candidates: `policy.candidates` of them, or all there are.
        parts: needed where the policy has dials.
        deeper: searches on where masks leave too few of the candidates; None = these are all.

    Returns:
        at most `policy.k` rows; fewer where there are fewer candidates, or where the masks leave no more however deep is searched.
    """
    if policy.dials is None or parts is None:
        rows_k = candidates.rows_C[: policy.k]
        shortage = "" if len(rows_k) == policy.k else ITEMS
        return Selection(rows_k, candidates.scores_C[: policy.k], np.ones(len(rows_k)), candidates, shortage)
    temperature = policy.dials.temperature
    return _Loop(policy, parts, candidates, deeper).run(_drawing(temperature, policy.seed) if temperature else _best)


def likelihood(candidates: Candidates, policy: Policy, parts: Parts, rows_k: Rows, deeper: Deeper | None = None) -> NDArray[np.float64]:
    """The probability of each choice of a given list, given those before it: what a policy would have done where another one chose.

    Returns:
        float64 [len(rows_k)]; 0 from the first choice on that the policy cannot make.
    """
    ahead = iter(rows_k.tolist())
    loop = _Loop(Policy(len(rows_k), policy.dials, policy.seed), parts, candidates, deeper)
    chosen = loop.run(lambda value_C, best: _given(np.flatnonzero(loop.pool.rows_C == next(ahead)), value_C, best, loop.temperature))
    return np.concatenate([chosen.propensities_k, np.zeros(len(rows_k) - len(chosen.rows_k))])


_Chosen = tuple[int, float]
"""A place among the candidates and its probability; the place -1 ends the list."""


class _Loop:
    """The list so far, and the candidates that may still be chosen."""

    def __init__(self, policy: Policy, parts: Parts, candidates: Candidates, deeper: Deeper | None) -> None:
        assert policy.dials is not None
        self.pool = candidates
        self.temperature = policy.dials.temperature
        self._k, self._deeper = policy.k, deeper
        self._standing, self._parts = parts.standing, [*parts.page, *parts.each()]
        self._asked, self._pools, self._before = policy.candidates, [candidates], 0
        self._found = [candidates.rows_C]  # by each search, with what the list barred already
        self._items = parts.items
        self._left: Candidates | None = None  # of the whole catalogue, once all of it was ranked
        scores_C = candidates.scores_C
        self._low = float(scores_C.min()) if len(scores_C) else 0.0
        self._span = float(scores_C.max()) - self._low if len(scores_C) else 0.0
        self._enter()

    def run(self, choose: Callable[[Values, int], _Chosen]) -> Selection:
        """Fill the list, position by position."""
        places: list[int] = []  # among all candidates considered
        propensities: list[float] = []
        gains, masks = [part.of for part in self._parts if part.adds], [part.chose for part in self._parts]
        while len(places) < self._k:
            value_C = self._value_C
            for gain in gains:
                gain_C = gain()
                if gain_C is not None:
                    value_C = np.add(value_C, gain_C, self._sum_C)
            best = int(value_C.argmax()) if len(value_C) else -1
            if best < 0 or value_C.item(best) == -inf:
                if self._search_on():
                    continue
                break
            c, propensity = choose(value_C, best)
            if c < 0:
                break
            places.append(self._before + c)
            propensities.append(propensity)
            self._value_C[c] = -inf
            for mask in masks:
                barred = mask(c)
                if barred is not None:
                    self._value_C[barred] = -inf
        pools = self._pools
        considered = pools[0]
        if len(pools) > 1:
            considered = Candidates(np.concatenate([pool.rows_C for pool in pools]), np.concatenate([pool.scores_C for pool in pools]))
        shortage = "" if len(places) == self._k else POLICY if sum(map(len, self._found)) > len(places) else ITEMS
        chosen_k = np.array(places, np.int64)
        return Selection(considered.rows_C[chosen_k], considered.scores_C[chosen_k], np.array(propensities), considered, shortage)

    def _enter(self) -> None:
        """Values of the candidates by themselves. Relevance goes on below 0 for those found later."""
        relevance_C = (self.pool.scores_C.astype(np.float64) - self._low) / (self._span or 1.0)
        self._value_C = relevance_C + self._standing(self.pool.rows_C)
        self._sum_C = np.empty_like(self._value_C)
        self._value_C[self._barred(self.pool.rows_C)] = -inf

    def _barred(self, rows_C: Rows) -> NDArray[np.bool_]:
        """Take up candidates; whether the list so far bars each."""
        barred_C = np.zeros(len(rows_C), bool)
        for part in self._parts:
            barred = part.enter(rows_C)
            if barred is not None:
                barred_C[barred] = True
        return barred_C

    def _search_on(self) -> bool:
        """Take up further candidates; whether there were any."""
        if self._left is not None:
            return self._go_on()
        if self._deeper is None or len(self._found[-1]) < self._asked:
            return False
        if len(self._found) == DEEPEST or 2 * self._asked > _BLOCK_ROWS:
            self._left = self._deeper(self._items, np.concatenate(self._found))
            return self._go_on()
        self._asked *= 2
        found = self._deeper(self._asked, np.concatenate(self._found))
        self._found.append(found.rows_C)
        return self._take_up(found) or self._search_on()

    def _take_up(self, found: Candidates) -> bool:
        """Go on with those that the list does not bar; whether there are any. What it bars is never freed, and each position would look at
        it again."""
        stays_C = ~self._barred(found.rows_C)
        if not stays_C.any():
            return False
        self._before += len(self.pool.rows_C)
        self.pool = Candidates(found.rows_C[stays_C], found.scores_C[stays_C])
        self._pools.append(self.pool)
        self._enter()
        return True

    def _go_on(self) -> bool:
        """Take up the next of what is left."""
        assert self._left is not None
        while len(self._left.rows_C):
            block = Candidates(self._left.rows_C[:_BLOCK_ROWS], self._left.scores_C[:_BLOCK_ROWS])
            self._left = Candidates(self._left.rows_C[_BLOCK_ROWS:], self._left.scores_C[_BLOCK_ROWS:])
            if self._take_up(block):
                return True
        return False


def _best(value_C: Values, best: int) -> _Chosen:
    return best, 1.0


def _drawing(temperature: float, seed: int) -> Callable[[Values, int], _Chosen]:
    """Draws c with probability ~ exp(value / temperature). One uniform number a position, put through the cumulated masses, has the law
    of adding Gumbel noise to every candidate and taking the best, which costs a logarithm for each of them.

    Arrays are kept from position to position, and temperature is one of them: on 200 numbers, a call of NumPy takes as long to make an
    array of a number as to do its work.
    """
    uniform, inverse, safe = random.Random(seed).random, 1.0 / temperature, _SAFE * temperature
    colder_C = mass_C = up_to_C = np.empty(0)

    def draw(value_C: Values, best: int) -> _Chosen:
        nonlocal colder_C, mass_C, up_to_C
        if len(mass_C) != len(value_C):
            colder_C, mass_C, up_to_C = np.full(len(value_C), inverse), np.empty_like(value_C), np.empty_like(value_C)
        top = value_C.item(best)
        if not -safe < top < safe:
            value_C = np.subtract(value_C, top)
        np.multiply(value_C, colder_C, mass_C)
        np.exp(mass_C, mass_C)
        np.add.accumulate(mass_C, 0, None, up_to_C)
        whole = up_to_C.item(-1)
        c = int(up_to_C.searchsorted(uniform() * whole, "right"))
        c = c if c < len(mass_C) else best  # only where the product rounds up to the whole
        return c, mass_C.item(c) / whole

    return draw


def _given(places: Places, value_C: Values, best: int, temperature: float) -> _Chosen:
    c = int(places[0]) if len(places) else -1
    if c < 0 or value_C[c] == -inf or (not temperature and c != best):
        return -1, 0.0
    if not temperature:
        return c, 1.0
    mass_C = np.exp((value_C - value_C[best]) * (1.0 / temperature))
    return c, float(mass_C[c] / mass_C.sum())
