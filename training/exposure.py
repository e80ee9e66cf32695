"""What lists show of the catalogue and how they suit a person's tastes, as pure functions of top-k lists.

Legend: Q queries, k ranks, I items, G categories, P providers. `rows_Qk` are item rows, best first; -1, where there was no item to show, is
no slot. Shares of categories are those of a list or a history: an item with n of them gives 1/n to each, one without any gives nothing.

Edge cases, the same everywhere: a query whose list (or history) holds nothing that could be counted has no value (NaN).
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp
from numpy.typing import NDArray

from training import ragged

Values = NDArray[np.float64]
Rows = NDArray[np.integer]

HEAD = 0.2
"""Share of the items that are the head; the others are the tail."""
SMOOTHING = 0.01
"""Alpha of calibration: what the history's shares lend to the list's, so that a category that the list lacks costs a finite amount."""


def gini(rows_Qk: Rows, allowed_I: NDArray[np.bool_], k: int) -> float:
    """How unevenly the slots of all lists are spread over the recommendable items: 0 = all are shown equally often, 1 = one alone.

    G = sum over i of (2 i - n - 1) x_i / (n sum x), with x_1 <= ... <= x_n the slots of each recommendable item (Gini, 1912, in the form
    of Dixon et al., 1987). It is no mean over queries, so it has no interval; NaN where nothing was shown.

    >>> gini(np.array([[0, 1], [2, 3]]), np.ones(4, bool), 2), gini(np.array([[0], [0]]), np.ones(4, bool), 1)
    (0.0, 0.75)
    """
    slots_I = np.sort(_slots(rows_Qk, len(allowed_I), k)[allowed_I])
    n, total = len(slots_I), slots_I.sum()
    return float((2 * np.arange(1, n + 1) - n - 1) @ slots_I / (n * total)) if total else float("nan")


def average_popularity(rows_Qk: Rows, count_I: NDArray[np.integer], k: int) -> Values:
    """Mean number of training events of the items of each list (ARP: Yin et al., 2012; Abdollahpouri et al., 2019).

    >>> average_popularity(np.array([[0, 1], [1, -1]]), np.array([10, 2]), 2).tolist()
    [6.0, 2.0]
    """
    return _mean_of_slots(count_I[np.maximum(rows_Qk[:, :k], 0)], rows_Qk[:, :k] >= 0)


def tail(count_I: NDArray[np.integer], allowed_I: NDArray[np.bool_], head: float = HEAD) -> NDArray[np.bool_]:
    """Whether each item is of the long tail: recommendable, and not among the share `head` of them with most training events (rounded up;
    equal counts by row).

    >>> tail(np.array([5, 1, 9, 1, 1]), np.ones(5, bool)).tolist()
    [True, True, False, True, True]
    """
    rows = np.flatnonzero(allowed_I)
    order = rows[np.argsort(-count_I[rows], kind="stable")]
    tail_I = allowed_I.copy()
    tail_I[order[: int(np.ceil(head * len(rows) - 1e-9))]] = False
    return tail_I


def tail_share(rows_Qk: Rows, tail_I: NDArray[np.bool_], k: int) -> Values:
    """Share of each list's slots that hold an item of the tail (Abdollahpouri et al., 2017: APLT).

    >>> tail_share(np.array([[0, 1, -1]]), np.array([True, False]), 3).tolist()
    [0.5]
    """
    return _mean_of_slots(tail_I[np.maximum(rows_Qk[:, :k], 0)], rows_Qk[:, :k] >= 0)


def provider_exposure(rows_Qk: Rows, provider_I: NDArray[np.integer], allowed_I: NDArray[np.bool_], k: int) -> Values:
    """What each provider has of all slots over what it has of the recommendable items: 1 = its share, 0 = never shown; float64 [P].

    Exposure by slots, not by attention, against the share of the catalogue (demographic parity of exposure: Singh and Joachims, 2018).
    Items without a provider (-1) count on neither side; a provider without a recommendable item has no value.

    >>> provider_exposure(np.array([[0, 1], [0, 2]]), np.array([0, 0, 1, 1]), np.ones(4, bool), 2).tolist()
    [1.5, 0.5]
    """
    count = int(provider_I.max(initial=-1)) + 1
    slots_I = _slots(rows_Qk, len(provider_I), k)
    known_I = allowed_I & (provider_I >= 0)
    slots_P = np.bincount(provider_I[known_I], slots_I[known_I], count)
    items_P = np.bincount(provider_I[known_I], minlength=count).astype(np.float64)
    shares_P = np.full(count, np.nan)
    if slots_P.sum():
        np.divide(slots_P / slots_P.sum(), items_P / items_P.sum(), out=shares_P, where=items_P > 0)
    return shares_P


def memberships(categories: pa.ChunkedArray) -> sp.csr_matrix:
    """Whether each item has each category: float64 [I, G] of zeros and ones, categories in order of their names.

    >>> memberships(pa.chunked_array([[["a", "b"], None, ["b", "b"]]])).toarray().tolist()
    [[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]]
    """
    lists = categories.combine_chunks()
    names = pc.list_flatten(lists).dictionary_encode()
    order = pc.array_sort_indices(names.dictionary)
    place = np.empty(len(order), np.int64)
    place[order.to_numpy()] = np.arange(len(order))
    item_n = pc.list_parent_indices(lists).to_numpy().astype(np.int64)
    code_n = names.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    known_n = code_n >= 0
    offsets, values = ragged.group(item_n[known_n], place[code_n[known_n]], len(lists))
    return sp.csr_matrix((np.ones(len(values)), values, offsets), shape=(len(lists), len(order)))


def list_shares(rows_Qk: Rows, member_IG: sp.csr_matrix, k: int) -> Values:
    """Shares of the categories in each list: float64 [Q, G]; a list without any category is all 0."""
    shown = rows_Qk[:, :k] >= 0
    offsets = np.concatenate([[0], np.cumsum(shown.sum(1))])
    return shares((offsets, rows_Qk[:, :k][shown]), member_IG)


def shares(items: ragged.Csr, member_IG: sp.csr_matrix) -> Values:
    """Shares of the categories among each query's items: float64 [Q, G], all 0 where none has a category.

    >>> shares((np.array([0, 2, 3]), np.array([0, 2, 1])), memberships(pa.chunked_array([[["a", "b"], None, ["b"]]]))).tolist()
    [[0.25, 0.75], [0.0, 0.0]]
    """
    queries = len(items[0]) - 1
    held_QI = sp.csr_matrix((np.ones(len(items[1])), items[1], items[0]), shape=(queries, member_IG.shape[0]))
    share_IG = _scaled(member_IG, np.asarray(member_IG.sum(1)).ravel())
    mass_QG = np.asarray((held_QI @ share_IG).todense())
    total_Q1 = mass_QG.sum(1, keepdims=True)
    share_QG = np.zeros_like(mass_QG)
    np.divide(mass_QG, total_Q1, out=share_QG, where=total_Q1 > 0)
    return share_QG


def miscalibration(taste_QG: Values, shown_QG: Values, smoothing: float = SMOOTHING) -> Values:
    """How far each list's categories are from its person's: 0 = they have the same shares (C_KL: Steck, RecSys 2018).

    C_KL = sum over g of p_g ln(p_g / q~_g), q~ = (1 - alpha) q + alpha p, with p the shares of the history and q those of the list, in
    nats. A list without any category has the greatest value there is, ln(1 / alpha).

    >>> miscalibration(np.array([[0.5, 0.5]]), np.array([[1.0, 0.0]])).round(4).tolist()
    [1.9585]
    """
    mixed_QG = (1 - smoothing) * shown_QG + smoothing * taste_QG
    some_QG = taste_QG > 0
    ratio_QG = np.divide(taste_QG, mixed_QG, out=np.ones_like(taste_QG), where=some_QG)
    return np.where(some_QG.any(1), (taste_QG * np.log(ratio_QG)).sum(1), np.nan)


def category_entropy(shown_QG: Values) -> Values:
    """How many categories each list mixes, and how evenly: the entropy of their shares in nats (Shannon, 1948); 0 = one category.

    >>> category_entropy(np.array([[0.5, 0.5], [1.0, 0.0], [0.0, 0.0]])).round(4).tolist()
    [0.6931, 0.0, nan]
    """
    logs_QG = np.log(np.where(shown_QG > 0, shown_QG, 1.0))
    return np.where(shown_QG.any(1), np.abs((shown_QG * logs_QG).sum(1)), np.nan)


def units(member_IG: sp.csr_matrix) -> sp.csr_matrix:
    """Categories as unit vectors, for `ild`; an item without any stays 0."""
    return _scaled(member_IG, np.sqrt(np.asarray(member_IG.sum(1)).ravel()))


def ild(rows_Qk: Rows, unit_ID: NDArray[np.floating] | sp.csr_matrix, k: int) -> Values:
    """How unlike the items of each list are: the mean over their pairs of 1 - cosine (ILD: Smyth and McClave, 2001; Ziegler et al., 2005).

    A list of fewer than two items has no value.

    Args:
        unit_ID: a vector of length 1 for each item, dense or sparse; one of zeros has nothing in common with any.

    >>> member_IG = memberships(pa.chunked_array([[["a"], ["a", "b"], ["c"]]]))
    >>> ild(np.array([[0, 1, 2], [0, -1, -1]]), units(member_IG), 3).round(4).tolist()
    [0.7643, nan]
    """
    shown = rows_Qk[:, :k] >= 0
    size_Q, items = shown.sum(1), rows_Qk[:, :k][shown]
    offsets = np.concatenate([[0], np.cumsum(size_Q)])
    held_QI = sp.csr_matrix((np.ones(len(items)), items, offsets), shape=(len(rows_Qk), unit_ID.shape[0]))
    sum_QD = held_QI @ unit_ID
    dense_QD = np.asarray(sum_QD.todense() if sp.issparse(sum_QD) else sum_QD)
    some_I = np.asarray(abs(unit_ID).sum(1)).ravel() > 0
    alike_Q = (dense_QD**2).sum(1) - held_QI @ some_I.astype(np.float64)  # twice the cosines of all pairs
    pairs_Q = size_Q * (size_Q - 1.0)
    distance_Q = np.full(len(rows_Qk), np.nan)
    np.divide(pairs_Q - alike_Q, pairs_Q, out=distance_Q, where=pairs_Q > 0)
    return distance_Q


def _slots(rows_Qk: Rows, items: int, k: int) -> NDArray[np.int64]:
    shown = rows_Qk[:, :k]
    return np.bincount(shown[shown >= 0], minlength=items)


def _mean_of_slots(values_Qk: NDArray[np.generic], filled_Qk: NDArray[np.bool_]) -> Values:
    mean_Q = np.full(len(filled_Qk), np.nan)
    np.divide((values_Qk * filled_Qk).sum(1), filled_Qk.sum(1), out=mean_Q, where=filled_Qk.any(1))
    return mean_Q


def _scaled(member_IG: sp.csr_matrix, size_I: Values) -> sp.csr_matrix:
    """Each item's row over its size."""
    each = np.repeat(1.0 / np.where(size_I > 0, size_I, 1.0), np.diff(member_IG.indptr))
    return sp.csr_matrix((each, member_IG.indices, member_IG.indptr), shape=member_IG.shape)
