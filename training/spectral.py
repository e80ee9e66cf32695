"""Spectral vectors: what a truncated singular value decomposition says of who took what, as the rows of a model's spectral part.

    A = Du^-1/2 R Di^-1/2,  A ~ U S V^T;   history row j = d_j^-1/2 V_j,   item row i = d_i^1/2 V_i

R is 1 where user and item met in training, Du and Di count. The sum of a history's rows, times an item's row, is then the low-pass
filter of the item graph (Shen et al. 2021, "How powerful is graph convolution for recommendation?", GF-CF): a smoothed row of R, so
its scores lie about between 0 and 1 on any data, and need no learning to rank well.

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


def spectral_tables(data: Interactions, dim: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """The tables of the spectral part: float32 [V, D] by name. Rows of items not met in training, and dimensions beyond the rank of the
    data, are zero."""
    matrix_UI = interaction_matrix(data)
    item_ID, _ = spectral_vectors(matrix_UI, min(dim, *matrix_UI.shape), seed)
    degree_I = np.asarray(matrix_UI.sum(0)).ravel()
    id_I = np.asarray(data.item_features[f"item.{ITEM_ID}"])
    met_I = (degree_I > 0) & (id_I >= FIRST_ROW)
    rows = len(data.preprocessor.vocabularies[ITEM_ID])
    tables = {}
    for name, power in ((SPECTRAL_ITEM, 0.5), (SPECTRAL_HISTORY, -0.5)):
        tables[name] = np.zeros((rows, dim), np.float32)
        tables[name][id_I[met_I], : item_ID.shape[1]] = item_ID[met_I] * degree_I[met_I][:, None] ** power
    return tables


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
    negative. Items that nobody has are zero.
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
    return vectors_ID, np.sqrt(np.maximum(square_K[first], 0)).astype(np.float32)


def normalised(matrix_UI: sp.csr_array) -> sp.csr_array:
    """Du^-1/2 R Di^-1/2."""
    user_U, item_I = (np.maximum(np.asarray(matrix_UI.sum(axis)).ravel(), 1) ** -0.5 for axis in (1, 0))
    return sp.csr_array(sp.diags_array(user_U) @ matrix_UI @ sp.diags_array(item_I), dtype=np.float32)
