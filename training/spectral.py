"""Spectral vectors: what a truncated singular value decomposition says of who took what, as the rows of a model's spectral part.

    A = Du^-1/2 R Di^-1/2,  A ~ U S V^T;   history row j = d_j^-1/2 V_j,   item row i = d_i^1/2 V_i

R is 1 where user and item met in training, Du and Di count. The sum of a history's rows, times an item's row, is then the low-pass
filter of the item graph (Shen et al. 2021, "How powerful is graph convolution for recommendation?", GF-CF): a smoothed row of R, so
its scores lie about between 0 and 1 on any data, and need no learning to rank well.

Where events have an order, R counts instead how often an item (its row) came right after another in training, and

    history row j = U_j S / |U_j S|,   item row i = d_i^1/2 V_i / m

so that an item's row, times that of the newest event, is a smoothed row of a Markov chain. m makes the root mean square of all pairs'
products SPREAD, so that a weight means about the same for any data.

Legend: U users, I items, D dim, K = D and a few more.
"""

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from towers.columns import FIRST_ROW, ITEM_ID, TRAIN
from towers.lookups import SPECTRAL_HISTORY, SPECTRAL_ITEM
from training.interactions import Interactions
from training.tracking import say

EXTRA = 16
"""Vectors computed beyond those wanted: the last ones converge slowest."""
ROUNDS = 4
LEAST_SHARE = 1e-6
"""Share of the greatest singular value from which a direction is one of the data's: rounding leaves some 1e-8 of those that are not."""
SPREAD = 0.1
"""Root mean square of the products of vectors of what comes next."""


def spectral_tables(data: Interactions, dim: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """The tables of the spectral part: float32 [V, D] by name. Rows of items not met in training, and dimensions beyond the rank of the
    data, are zero."""
    if data.schema.order == "set":
        matrix_UI = interaction_matrix(data)
        item_ID, _ = spectral_vectors(matrix_UI, min(dim, *matrix_UI.shape), seed)
        degree_I1 = np.asarray(matrix_UI.sum(0)).reshape(-1, 1)
        item_ID *= degree_I1 > 0
        vectors = {name: item_ID * np.maximum(degree_I1, 1) ** power for name, power in ((SPECTRAL_ITEM, 0.5), (SPECTRAL_HISTORY, -0.5))}
    else:
        vectors = _next_vectors(transition_matrix(data), dim, seed)
    id_I = np.asarray(data.item_features[f"item.{ITEM_ID}"])
    known_I = id_I >= FIRST_ROW
    tables = {}
    for name, rows_ID in vectors.items():
        tables[name] = np.zeros((len(data.preprocessor.vocabularies[ITEM_ID]), dim), np.float32)
        tables[name][id_I[known_I], : rows_ID.shape[1]] = rows_ID[known_I]
    return tables


def transition_matrix(data: Interactions) -> sp.csr_array:
    """float32 [I, I]: how often the item of a column was a user's training target right after the event of a row, whatever that weighs."""
    position_N = np.flatnonzero(data.split == TRAIN)
    user_N, item_N = data.users_of(position_N), np.asarray(data.item[position_N])
    step = (user_N[1:] == user_N[:-1]) & (data.weight[position_N[1:]] > 0)
    pairs = (item_N[:-1][step], item_N[1:][step])
    matrix_II = sp.csr_array((np.ones(len(pairs[0]), np.float32), pairs), shape=(data.n_items, data.n_items))
    matrix_II.sum_duplicates()
    return matrix_II


def _next_vectors(matrix_II: sp.csr_array, dim: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """Item and history rows of what follows what, float32 [I, D] each; zero for items that nothing follows, or that follow nothing."""
    vectors_ID, _ = spectral_vectors(matrix_II, min(dim, matrix_II.shape[0]), seed)
    before_ID = normalised(matrix_II) @ vectors_ID  # U S
    length_I1 = np.linalg.norm(before_ID, axis=1, keepdims=True)
    before_ID = np.divide(before_ID, length_I1, out=np.zeros_like(before_ID), where=length_I1 > 1e-6)
    item_ID = vectors_ID * np.asarray(matrix_II.sum(0)).reshape(-1, 1) ** 0.5
    # of all pairs' products, without making them: the squares sum to the trace of both tables' second moments, multiplied
    square = float(np.sum((before_ID.T @ before_ID) * (item_ID.T @ item_ID))) / max(1, len(item_ID)) ** 2
    return {SPECTRAL_ITEM: item_ID * np.float32(SPREAD / max(square, 1e-12) ** 0.5), SPECTRAL_HISTORY: before_ID}


def interaction_matrix(data: Interactions) -> sp.csr_array:
    """float32 [U, I]: 1 where the user has a training target of that item."""
    position_N = np.flatnonzero((data.split == TRAIN) & (data.weight > 0))
    pairs = (data.users_of(position_N), data.item[position_N])
    matrix_UI = sp.csr_array((np.ones(len(position_N), np.float32), pairs), shape=(data.n_users, data.n_items))
    matrix_UI.sum_duplicates()
    matrix_UI.data[:] = 1.0
    return matrix_UI


def spectral_vectors(matrix_UI: sp.csr_array, dim: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The greatest right singular vectors of the normalised matrix, float32 [I, D], and their singular values, descending.

    Subspace iteration on A^T A from random vectors, and a Rayleigh-Ritz step at the end (Halko, Martinsson and Tropp 2011): a few
    products with a sparse matrix, where an exact method takes hours at this many vectors. Signs are such that each vector's sum is not
    negative. Items that nobody has are zero, and so are vectors beyond the matrix's rank, which could be any of the null space.
    """
    normal_UI = normalised(matrix_UI)
    normal_IU = normal_UI.T.tocsr()
    items = normal_UI.shape[1]
    basis_IK = np.random.default_rng(seed).standard_normal((items, min(dim + EXTRA, items)), np.float32)
    for done in range(ROUNDS):
        basis_IK = np.linalg.qr(normal_IU @ (normal_UI @ basis_IK))[0]
        say(f"spectral vectors: {dim} dimensions of {matrix_UI.nnz} pairs, round {done + 1} of {ROUNDS}")
    image_UK = normal_UI @ basis_IK
    square_K, turn_KK = np.linalg.eigh((image_UK.T @ image_UK).astype(np.float64))
    first = np.argsort(-square_K)[:dim]
    vectors_ID = basis_IK @ turn_KK[:, first].astype(np.float32)
    vectors_ID *= np.where(vectors_ID.sum(0) < 0, -1, 1).astype(np.float32)
    value_D = np.sqrt(np.maximum(square_K[first], 0)).astype(np.float32)
    spanned_D = value_D > LEAST_SHARE * value_D.max(initial=0.0)
    return vectors_ID * spanned_D, value_D * spanned_D


def normalised(matrix_UI: sp.csr_array) -> sp.csr_array:
    """Du^-1/2 R Di^-1/2."""
    user_U, item_I = (np.maximum(np.asarray(matrix_UI.sum(axis)).ravel(), 1) ** -0.5 for axis in (1, 0))
    return sp.csr_array(sp.diags_array(user_U) @ matrix_UI @ sp.diags_array(item_I), dtype=np.float32)
