"""Which of the sources of scores are told: what speaks most for each item of a list, all items at once.

Legend: k items, S sources, E of them events, M reasons of an item.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serving.attribution import Carried
from serving.wording import LEAST_SHARE

MOST_EVENTS, MOST_OTHERS = 3, 3
"""Reasons told of an item."""


@dataclass(frozen=True)
class Best:
    """What speaks most for each item; of the reasons of all items, one after another, the greatest of each item first.

    Attributes:
        places: sources.
        parts, shares: of each reason.
        count_k: reasons of each item.
        lived_k: share of all its events together.
        rest_k: what its reasons leave of its score.
        pair_k2: the two events that carry most of it, where they alone are worth naming; else None.
    """

    places: list[int]
    parts: list[float]
    shares: list[float]
    count_k: list[int]
    lived_k: list[float]
    rest_k: list[float]
    pair_k2: list[list[int] | None]

    @classmethod
    def of(cls, carried: Carried, others: Sequence[int]) -> "Best":
        """Among the events, and among `others` of the sources; those told of equal parts stand in their order."""
        parts_kS, events = carried.parts_kS, carried.events
        size, width = parts_kS.shape
        against_kS = -parts_kS
        row_k1 = np.arange(size)[:, None]
        start_k1 = row_k1 * width
        event_kM = against_kS[:, :events].argsort(1)[:, :MOST_EVENTS]  # a stable sort of so many takes three times as long
        event_kM.sort(1)
        order_kM = against_kS.take(event_kM + start_k1).argsort(1, "stable")
        order_kM += row_k1 * event_kM.shape[1]
        chosen_kM = event_kM = event_kM.take(order_kM)
        if others:
            other_S = np.array(others)
            other_kM = other_S.take(against_kS[:, other_S].argsort(1, "stable")[:, :MOST_OTHERS])
            chosen_kM = np.concatenate((event_kM, other_kM), axis=1)
        for_kM = np.maximum(parts_kS.take(chosen_kM + start_k1), 0)  # of which 0 is not told
        order_kM = (-for_kM).argsort(1, "stable")
        order_kM += row_k1 * chosen_kM.shape[1]
        place_kM, part_kM = chosen_kM.take(order_kM), for_kM.take(order_kM).astype(np.float64)
        for_kS = np.maximum(parts_kS, 0)
        ones_S = np.ones(width, np.float32)  # a product with ones sums rows in half the time
        speaks_k = (for_kS @ ones_S).astype(np.float64)
        speaks_k[speaks_k == 0] = 1.0  # of an item that nothing speaks for no share is told
        whole_k = parts_kS @ ones_S
        if carried.rest_k is not None:
            whole_k = whole_k + carried.rest_k
        share_kM, rest_k = part_kM / speaks_k[:, None], whole_k - part_kM.sum(1)
        lived_k = (for_kS[:, :events] @ ones_S[:events] / speaks_k).tolist()
        count_k = [part_kM.shape[1]] * size
        if np.count_nonzero(part_kM) < part_kM.size:
            told_kM = part_kM > 0
            count_k = told_kM.sum(1).tolist()
            place_kM, part_kM, share_kM = place_kM[told_kM], part_kM[told_kM], share_kM[told_kM]
        pairs: list[list[int] | None] = [None] * size
        if event_kM.shape[1] == MOST_EVENTS:
            aside_k = (for_kM[:, MOST_EVENTS] / speaks_k).tolist() if others else [0.0] * size
            two_k = zip(event_kM[:, :2].tolist(), for_kM[:, 1].tolist(), lived_k, aside_k, strict=True)
            pairs = [pair if least > 0 and lived >= LEAST_SHARE > aside else None for pair, least, lived, aside in two_k]
        places, parts, shares = place_kM.ravel().tolist(), part_kM.ravel().tolist(), share_kM.ravel().tolist()
        return cls(places, parts, shares, count_k, lived_k, rest_k.tolist(), pairs)
