"""Maps to fewer numbers, trained further: nearer to the wide softmax than where they start, and the same for the same seed."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from training.narrow import WideVectors, turned
from training.narrow_fit import FitSettings, Maps, divergence, fit_maps

USERS, ITEMS, WIDE, LEARNED, NARROW = 400, 300, 12, 3, 5
SETTINGS = FitSettings(steps=60, users=64, items=200)


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    user_QW, item_IW = (rng.standard_normal((rows, WIDE)).astype(np.float32) / WIDE**0.5 for rows in (USERS, ITEMS))
    user_WW, item_WW = ((rows.T @ rows).astype(np.float64) for rows in (user_QW, item_IW))
    return WideVectors(user_QW, item_IW, user_WW, item_WW, LEARNED)


def lost(vectors, maps):
    tensors = [torch.from_numpy(np.asarray(array, np.float32)) for array in (vectors.user_QW, vectors.item_IW, *maps)]
    return divergence(*tensors, SETTINGS.temperature).item()


def test_divergence_equals_the_written_sum(vectors):
    maps = vectors.closed(1.0, NARROW)
    wide, narrow = vectors.user_QW @ vectors.item_IW.T, (vectors.user_QW @ maps.user_WN) @ (vectors.item_IW @ maps.item_WN).T
    p, q = (np.exp(scores / 0.1) / np.exp(scores / 0.1).sum(1, keepdims=True) for scores in (wide.astype(np.float64), narrow))
    assert lost(vectors, maps) == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-4)


def test_maps_trained_further_are_nearer_on_all_users_and_items(vectors):
    start = vectors.closed(1.0, NARROW)
    steps = [lost(vectors, start)]
    for count in (20, 60):
        fit = fit_maps(start, vectors.user_QW, vectors.item_IW, 0, FitSettings(steps=count, users=64, items=200))
        steps.append(lost(vectors, fit))
    assert all(later < 0.98 * earlier for earlier, later in pairwise(steps)), steps


def test_a_seed_says_all_and_the_start_stays_as_it_was(vectors):
    start = vectors.closed(1.0, NARROW)
    before = Maps(*(map_WN.copy() for map_WN in start))
    one, same, other = (fit_maps(start, vectors.user_QW, vectors.item_IW, seed, SETTINGS) for seed in (1, 1, 2))
    for first, second, third in zip(one, same, other, strict=True):
        np.testing.assert_array_equal(first, second)
        assert (first != third).any()
    for first, second in zip(before, start, strict=True):
        np.testing.assert_array_equal(first, second)


def test_turned_maps_have_the_same_scores_and_keep_the_learned_part(vectors):
    maps = fit_maps(vectors.closed(1.0, NARROW), vectors.user_QW, vectors.item_IW, 0, SETTINGS)
    user_WN, item_WN = turned(maps, LEARNED)
    np.testing.assert_allclose(user_WN @ item_WN.T, maps.user_WN @ maps.item_WN.T, atol=1e-9)
    np.testing.assert_allclose(user_WN[:LEARNED], np.eye(LEARNED, NARROW), atol=1e-9)
