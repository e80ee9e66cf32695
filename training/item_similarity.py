"""Item-to-item baselines: a score is the sum, over the items of a history, of a similarity that is counted or solved, not trained.

Legend: U users, I items, Q queries, B queries of a block.
Both read each query's distinct positive history items, and both count training rows only. A history that says nothing gets popularity.
"""

from itertools import pairwise

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from towers.columns import TRAIN
from towers.errors import DataError
from towers.topk import Fill
from training import ragged
from training.interactions import Interactions
from training.queries import Queries

_BLOCK_COUNTS = 20_000_000
"""Products of co-counting in one go: bounds its memory."""
_DENSE_WORTH = 200
"""A matrix product adds this many numbers while a sum of gathered rows adds one (measured, one core)."""


def choices_UI(data: Interactions) -> sp.csr_matrix:
    """Which items each user chose in training: float32 ones [U, I]."""
    rows = np.flatnonzero((data.split == TRAIN) & (data.weight > 0))
    chosen_UI = sp.csr_matrix((np.ones(len(rows), np.float32), (data.users_of(rows), data.item[rows])), shape=(data.n_users, data.n_items))
    chosen_UI.sum_duplicates()
    chosen_UI.data.fill(1)
    return chosen_UI


def item_knn(chosen_UI: sp.csr_matrix, neighbours: int, shrinkage: float) -> sp.csr_matrix:
    """Each item's nearest by cosine: the column of item j holds its `neighbours` greatest similarities, sparse [I, I], no diagonal.

    s_ij = n_ij / (sqrt(n_ii n_jj) + shrinkage), where n_ij counts the users who chose both, each with the weight mean(n) / n_u of the n_u
    items that the user chose: who chose everything says little of any pair (rows of unit length, Deshpande and Karypis 2004), and pairs
    that few users chose count less (shrinkage as in Bell and Koren 2007). Equal similarities go to the lower item row.

    >>> two = sp.csr_matrix(np.array([[1, 1, 0], [1, 1, 1]], np.float32))
    >>> item_knn(two, 1, 0.0).toarray().astype(float).round(3).tolist()
    [[0.0, 1.0, 0.632], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    size_U = np.diff(chosen_UI.indptr)
    weight_U = size_U.mean() / np.maximum(size_U, 1)
    weighted_IU = (sp.diags(weight_U.astype(np.float32)) @ chosen_UI).T.tocsr()
    root_I = np.sqrt(np.asarray(weighted_IU.sum(axis=1)).ravel())
    items = chosen_UI.shape[1]
    work = np.concatenate([[0], np.cumsum(chosen_UI.T @ size_U.astype(np.float64))])
    bounds = [0]
    while bounds[-1] < items:
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(work, work[bounds[-1]] + _BLOCK_COUNTS, side="right")) - 1))
    kept_i, kept_j, kept_s = [], [], []
    for start, stop in pairwise(bounds):
        together = (weighted_IU[start:stop] @ chosen_UI).tocsr()
        together.sort_indices()
        for row, item in enumerate(range(start, stop)):
            part = slice(together.indptr[row], together.indptr[row + 1])
            near = together.indices[part]
            similar = together.data[part] / (root_I[item] * root_I[near] + shrinkage)
            similar[near == item] = 0
            best = _greatest(similar, neighbours)
            kept_i.append(near[best])
            kept_s.append(similar[best])
            kept_j.append(np.full(len(best), item, np.int32))
    values = (np.concatenate(kept_s).astype(np.float32), (np.concatenate(kept_i), np.concatenate(kept_j)))
    return sp.csr_matrix(values, shape=(items, items))


def _greatest(values: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Places of the k greatest positive values, ascending; the earlier one of equals."""
    if len(values) <= k:
        return np.flatnonzero(values > 0)
    least = np.partition(values, len(values) - k)[len(values) - k]
    if least <= 0:
        return np.flatnonzero(values > 0)
    above = np.flatnonzero(values > least)
    return np.sort(np.concatenate([above, np.flatnonzero(values == least)[: k - len(above)]]))


def ease(chosen_UI: sp.csr_matrix, penalty: float) -> Tensor:
    """EASE^R: the linear autoencoder without self-similarity, in closed form (Steck, WWW 2019), float32 [I, I].

    B = I - P diag(1 / diag P) with P = (X'X + penalty * I)^-1, and zeros on the diagonal. Memory: two matrices of 4 I^2 bytes; time I^3.

    Raises:
        DataError: the matrix is not positive definite in float32, which a greater penalty mends.
    """
    gram_II = torch.from_numpy((chosen_UI.T @ chosen_UI).toarray())
    gram_II.diagonal().add_(penalty)
    lower_II, failed = torch.linalg.cholesky_ex(gram_II)
    if int(failed):
        raise DataError(f"EASE: X'X + {penalty:g} is not positive definite in float32. Use a greater penalty")
    inverse_II = torch.cholesky_inverse(lower_II, out=gram_II)
    weights_II = inverse_II.div_(-inverse_II.diagonal().clone())
    weights_II.diagonal().zero_()
    return weights_II


def sums_over_history(similarity_II: sp.csr_matrix | Tensor, queries: Queries, newest: int = 0) -> Fill:
    """Scores: the sum of the rows of a query's history items; popularity where there is nothing to sum, below every such sum.

    Args:
        similarity_II: from the item of the history (row) to the item that is scored (column); sparse and not negative, or dense.
        newest: positive events that count, from the newest back; 0 = all.
    """
    data = queries.data
    counts_I = data.train_counts()
    popularity_I = torch.as_tensor(counts_I / (counts_I.max(initial=0) + 1) - 1, dtype=torch.float32)

    def fill(block: slice, out_BI: Tensor) -> None:
        offsets, items = positive_history(queries, block, newest)
        history_BI = sp.csr_matrix((np.ones(len(items), np.float32), items, offsets), shape=(len(offsets) - 1, data.n_items))
        if not isinstance(similarity_II, Tensor):
            sums_BI = torch.from_numpy((history_BI @ similarity_II).toarray())
            out_BI.copy_(torch.where(sums_BI > 0, sums_BI, popularity_I))
            return
        if len(items) * _DENSE_WORTH > out_BI.numel():
            torch.mm(torch.from_numpy(history_BI.toarray()), similarity_II, out=out_BI)
        else:
            rows, starts = torch.as_tensor(items, dtype=torch.long), torch.as_tensor(offsets[:-1])
            out_BI.copy_(F.embedding_bag(rows, similarity_II, starts, mode="sum"))
        out_BI[torch.as_tensor(np.diff(offsets) == 0)] = popularity_I

    return fill


def positive_history(queries: Queries, block: slice, newest: int = 0) -> ragged.Csr:
    """The distinct items of each query's positive events, of the `newest` last ones where that is above 0."""
    data = queries.data
    offsets, rows = queries.history.take(block).rows()
    offsets, rows = ragged.keep((offsets, rows), data.weight[rows] > 0)
    if newest:
        left_R = np.repeat(offsets[1:], np.diff(offsets)) - np.arange(len(rows))
        offsets, rows = ragged.keep((offsets, rows), left_R <= newest)
    return ragged.group(ragged.owners((offsets, rows)), data.item[rows], len(offsets) - 1)
