"""Spectral vectors against a dense singular value decomposition, and the tables made of them."""

import numpy as np
import pytest
import scipy.sparse as sp

from towers.columns import FIRST_ROW
from towers.lookups import SPECTRAL_HISTORY, SPECTRAL_ITEM
from training.spectral import interaction_matrix, spectral_tables, spectral_vectors


def dense_filter(matrix, dim):
    """(normalised matrix's) V V^T of the `dim` greatest singular values, and those values."""
    users, items = (np.maximum(matrix.sum(axis), 1) ** -0.5 for axis in (1, 0))
    _, sigma, right = np.linalg.svd(users[:, None] * matrix * items)
    return right[:dim].T @ right[:dim], sigma[:dim]


def communities(rng, users=90, items=40, groups=6):
    """As many clear directions as groups, and noise well below them."""
    near = (np.arange(users)[:, None] % groups) == (np.arange(items) % groups)
    return (rng.random((users, items)) < np.where(near, 0.7, 0.05)).astype(np.float32)


def test_vectors_equal_a_dense_decomposition():
    matrix = communities(np.random.default_rng(0))
    matrix[:, 7] = 0  # met by nobody
    vectors, sigma = spectral_vectors(sp.csr_array(matrix), 6, seed=0)
    wanted, wanted_sigma = dense_filter(matrix, 6)
    np.testing.assert_allclose(sigma, wanted_sigma, atol=1e-4)
    np.testing.assert_allclose(vectors @ vectors.T, wanted, atol=1e-3)
    assert np.abs(vectors[7]).max() < 1e-9 and (vectors.sum(0) > -1e-4).all()


def test_as_many_vectors_as_there_are_users():
    matrix = communities(np.random.default_rng(1), users=5, items=8)
    vectors, sigma = spectral_vectors(sp.csr_array(matrix), 5, seed=0)
    assert vectors.shape == (8, 5) and np.isfinite(vectors).all()
    np.testing.assert_allclose(sigma, dense_filter(matrix, 5)[1], atol=1e-3)


def test_vectors_beyond_the_rank_are_zero():
    """300 users of 6 patterns span 6 dimensions; a unit vector of the null space beside them would score what nobody chose."""
    rng = np.random.default_rng(2)
    matrix = (rng.random((6, 40)) < 0.3).astype(np.float32)[rng.permutation(np.arange(300) % 6)]
    vectors, sigma = spectral_vectors(sp.csr_array(matrix), 20, seed=0)
    wanted, wanted_sigma = dense_filter(matrix, 6)
    assert not vectors[:, 6:].any() and not sigma[6:].any()
    np.testing.assert_allclose(sigma[:6], wanted_sigma, atol=1e-4)
    np.testing.assert_allclose(vectors @ vectors.T, wanted, atol=1e-4)


def test_the_sum_of_a_history_scores_as_the_low_pass_filter(toy_set):
    """history rows d^-1/2 V, item rows d^1/2 V: x Di^-1/2 V V^T Di^1/2."""
    tables = spectral_tables(toy_set, 4, seed=0)
    matrix = interaction_matrix(toy_set).toarray()
    degree = matrix.sum(0)
    low_pass, _ = dense_filter(matrix, 4)
    id_rows = np.asarray(toy_set.item_features["item.item_id"])
    got = matrix @ tables[SPECTRAL_HISTORY][id_rows] @ tables[SPECTRAL_ITEM][id_rows].T
    wanted = (matrix * np.maximum(degree, 1) ** -0.5) @ low_pass * degree**0.5
    np.testing.assert_allclose(got, wanted, atol=2e-3)


def test_what_training_has_not_met_and_the_data_do_not_span_is_zero(toy_set):
    tables = spectral_tables(toy_set, 60, seed=0)  # more dimensions than the data have items
    met = np.unique(np.asarray(toy_set.item_features["item.item_id"])[interaction_matrix(toy_set).sum(0) > 0])
    for rows in tables.values():
        assert rows.shape == (len(toy_set.preprocessor.vocabularies["item_id"]), 60)
        assert np.flatnonzero(rows.any(1)).tolist() == met[met >= FIRST_ROW].tolist()
        assert not rows[:, toy_set.n_items :].any()


@pytest.mark.realdata
def test_gowalla_is_ranked_well_without_any_training(gowalla):
    """64 dimensions, every 30th user, train items masked; exact singular vectors give 0.145, those of four rounds a little more."""
    train, test = (pairs_of(gowalla / f"{name}.txt") for name in ("train", "test"))
    shape = (max(train[0].max(), test[0].max()) + 1, max(train[1].max(), test[1].max()) + 1)
    matrix, wanted = (sp.csr_array((np.ones(len(u), np.float32), (u, i)), shape=shape) for u, i in (train, test))
    vectors, _ = spectral_vectors(matrix, 64, seed=0)
    degree = np.maximum(matrix.sum(0), 1)[:, None]
    some = np.arange(0, shape[0], 30)
    history, wanted = matrix[some], wanted[some]
    scores = (history @ (degree**-0.5 * vectors)) @ (degree**0.5 * vectors).T
    scores[history.nonzero()] = -np.inf
    best = np.argpartition(-scores, 20, axis=1)[:, :20]
    hits = np.take_along_axis(wanted.toarray(), best, axis=1).sum(1)
    assert (hits / wanted.sum(1)).mean() == pytest.approx(0.149, abs=0.005)


def pairs_of(path):
    lines = [np.array(line.split(), np.int64) for line in path.read_text().splitlines() if line.strip()]
    return np.repeat([line[0] for line in lines], [len(line) - 1 for line in lines]), np.concatenate([line[1:] for line in lines])
