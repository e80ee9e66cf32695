"""Candidates: their probabilities against counted draws, and what the correction buys against the exact softmax."""

import doctest

import numpy as np
import pytest
import torch

from towers.errors import ConfigError
from training import negatives
from training.config import NegativesConfig
from training.loss import full_softmax, sampled_softmax
from training.negatives import Mined, Negatives

KINDS = ["in_batch", "uniform", "popularity", "mixed", "hard"]


def skewed(items, seed=0):
    rng = np.random.default_rng(seed)
    return rng.permutation(1 + (1000 / (1 + np.arange(items)) ** 1.1).astype(np.int64))


def draw(config, targets, counts, rng):
    """One step's candidates; hard ones among the rarest items."""
    mined = Mined(np.array([1, 2, len(counts) - 1]), np.array([0.5, 0.25, 0.25])) if config.name == "hard" else None
    return Negatives(config, counts).draw(targets, rng, mined)


def test_doctests():
    result = doctest.testmod(negatives)
    assert result.attempted >= 2 and result.failed == 0


@pytest.mark.parametrize("name", KINDS)
def test_shapes_and_bookkeeping(name):
    counts, rng = skewed(50), np.random.default_rng(1)
    targets = np.array([7, 3, 7, 49], np.int32)
    got = draw(NegativesConfig(name, 20), targets, counts, rng)
    assert got.rows_C.dtype == np.int64 and got.positive_N.dtype == np.int64
    assert got.log_q_C.dtype == got.multiplicity_C.dtype == np.float32
    assert (np.diff(got.rows_C) > 0).all()
    assert got.rows_C[got.positive_N].tolist() == targets.tolist()
    drawn = {"in_batch": 4, "uniform": 20, "popularity": 20, "mixed": 24, "hard": 24}[name]
    assert got.multiplicity_C.sum() == drawn
    if name == "in_batch":
        assert dict(zip(got.rows_C.tolist(), got.multiplicity_C.tolist(), strict=True)) == {3: 1, 7: 2, 49: 1}
    if name == "uniform":
        undrawn = got.multiplicity_C == 0
        assert set(got.rows_C[undrawn]) <= {3, 7, 49}


@pytest.mark.parametrize("name", KINDS)
def test_same_generator_state_same_draw(name):
    counts, targets = skewed(50), np.arange(10)
    one, two, other = (draw(NegativesConfig(name, 30), targets, counts, np.random.default_rng(s)) for s in (5, 5, 6))
    for field in ("rows_C", "positive_N", "log_q_C", "multiplicity_C"):
        assert np.array_equal(getattr(one, field), getattr(two, field))
    if name != "in_batch":
        assert not np.array_equal(one.multiplicity_C, other.multiplicity_C) or not np.array_equal(one.rows_C, other.rows_C)


@pytest.mark.parametrize("name", KINDS)
def test_q_is_a_distribution_and_matches_counted_draws(name):
    items, batch, count, rounds = 40, 16, 24, 2000
    counts, rng = skewed(items), np.random.default_rng(2)
    p = counts / counts.sum()
    seen = np.zeros(items)
    q = np.full(items, np.nan)
    for _ in range(rounds):
        got = draw(NegativesConfig(name, count), rng.choice(items, batch, p=p), counts, rng)
        seen[got.rows_C] += got.multiplicity_C
        q[got.rows_C] = np.exp(got.log_q_C)
    assert q.sum() == pytest.approx(1, abs=1e-5)
    expected = q * seen.sum()
    chi_square = ((seen - expected) ** 2 / expected).sum()
    # mean 39, standard deviation 8.8; a proposal that forgets either part gives thousands
    assert chi_square < 39 + 6 * 8.8


@pytest.mark.parametrize("name", KINDS)
def test_the_corrected_partition_is_unbiased(name):
    items, batch, count, rounds = 60, 16, 32, 3000
    counts, rng = skewed(items, 3), np.random.default_rng(3)
    scores = rng.normal(size=items) + 0.5 * np.log(counts)
    exact = np.exp(scores).sum()
    estimates, plain = [], []
    for _ in range(rounds):
        got = draw(NegativesConfig(name, count), rng.choice(items, batch, p=counts / counts.sum()), counts, rng)
        weight = got.multiplicity_C / got.multiplicity_C.sum()
        estimates.append((weight * np.exp(scores[got.rows_C] - got.log_q_C)).sum())
        plain.append((weight * np.exp(scores[got.rows_C])).sum() * items)
    error = np.std(estimates) / rounds**0.5
    assert abs(np.mean(estimates) - exact) < 5 * error
    if name != "uniform":
        assert abs(np.mean(plain) - exact) > 20 * np.std(plain) / rounds**0.5


@pytest.mark.parametrize("name", KINDS)
def test_the_corrected_gradient_comes_near_the_full_one_and_the_plain_one_does_not(name):
    # enough draws that their noise is small beside the bias of no correction: both fall as 1 / sqrt(draws), the bias does not
    items, dim, rows, count = 200, 8, 20_000, 20_000
    counts, rng = skewed(items, 4), np.random.default_rng(4)
    targets = rng.choice(items, rows, p=counts / counts.sum())
    g = torch.Generator().manual_seed(4)
    user = torch.randn(rows, dim, generator=g, dtype=torch.float64)
    item = torch.randn(items, dim, generator=g, dtype=torch.float64, requires_grad=True)
    weight = torch.ones(rows, dtype=torch.float64)
    exact = torch.autograd.grad(full_softmax(user, item, torch.from_numpy(targets), weight, 1.0), item)[0]
    got = draw(NegativesConfig(name, count), targets, counts, rng)

    def gap(strength):
        value = sampled_softmax(
            user, item[torch.from_numpy(got.rows_C)], torch.from_numpy(got.positive_N), strength * torch.from_numpy(got.log_q_C),
            torch.from_numpy(got.multiplicity_C), weight, 1.0, False,
        )  # fmt: skip
        return ((torch.autograd.grad(value, item)[0] - exact).norm() / exact.norm()).item()

    assert gap(1.0) < 0.15
    if name != "uniform":
        assert gap(1.0) < 0.15 * gap(0.0)


def test_a_catalogue_smaller_than_the_draw_is_counted_not_refused():
    got = draw(NegativesConfig("uniform", 1000), np.array([0, 2]), np.array([5, 1, 1]), np.random.default_rng(0))
    assert got.rows_C.tolist() == [0, 1, 2] and got.multiplicity_C.sum() == 1000
    assert np.allclose(np.exp(got.log_q_C), 1 / 3)


def test_a_target_that_was_never_counted_has_a_finite_log_q():
    got = draw(NegativesConfig("in_batch", 0), np.array([0, 1]), np.array([9, 0]), np.random.default_rng(0))
    assert np.isfinite(got.log_q_C).all()
    for kind in KINDS:
        assert np.isfinite(draw(NegativesConfig(kind, 4), np.array([0, 1]), np.zeros(3, np.int64), np.random.default_rng(0)).log_q_C).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (NegativesConfig("hardest", 5), r"negatives\.name: got 'hardest', expected one of in_batch, uniform, popularity, mixed, hard"),
        (NegativesConfig("mixed", 0), r"negatives\.count: got 0, expected at least 1"),
        (NegativesConfig("uniform", -1), r"negatives\.count: got -1"),
    ],
)
def test_wrong_settings_name_the_knob(config, message):
    with pytest.raises(ConfigError, match=message):
        draw(config, np.array([0]), np.array([1, 1]), np.random.default_rng(0))
