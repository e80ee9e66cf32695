import itertools

import pytest
import torch
from torch import nn

from training.config import OptimConfig
from training.optim import Optimizer, learning_rate


def make(seed=0, **settings):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2))
    return model, Optimizer(model, OptimConfig(**settings), total_steps=10)


def one_step(model, optimizer, step):
    optimizer.zero_grad()
    model(torch.tensor([step % 7, 3])).square().sum().backward()
    return optimizer.step(step, optimizer.grad_norm())


def test_warm_up_then_cosine_to_near_zero():
    config = OptimConfig(lr=0.1, warmup_share=0.1, schedule="cosine")
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.01 * (s + 1) for s in range(10)])
    assert max(rates) == pytest.approx(0.1) and rates[55] == pytest.approx(0.05, abs=1e-3)
    assert all(a > b for a, b in itertools.pairwise(rates[10:])) and 0 < rates[-1] < 1e-4


def test_constant_stays_and_no_warm_up_starts_at_full_rate():
    config = OptimConfig(lr=0.1, warmup_share=0.0, schedule="constant")
    assert [learning_rate(config, step, 5) for step in range(5)] == [0.1] * 5


def test_a_single_step_has_a_rate():
    assert learning_rate(OptimConfig(lr=0.1), 0, 1) == pytest.approx(0.1)


def test_moves_as_plain_adam_with_decoupled_decay():
    """The textbook update, written out."""
    model, optimizer = make(lr=0.1, weight_decay=0.01, schedule="constant", warmup_share=0.0)
    weight = model[1].weight.detach().clone().double()
    m = v = torch.zeros_like(weight)
    for step in range(4):
        one_step(model, optimizer, step)
        g = model[1].weight.grad.double()
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        weight = weight * (1 - 0.1 * 0.01)
        weight = weight - 0.1 * (m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
    assert torch.allclose(model[1].weight.double(), weight, atol=1e-5)


def test_clipping_bounds_the_gradient_and_reports_its_length_before():
    model, optimizer = make(clip_norm=0.01)
    optimizer.zero_grad()
    (model(torch.tensor([1, 2])).square().sum() * 100).backward()
    norm = optimizer.grad_norm()
    assert norm > 0.01
    optimizer.step(0, norm)
    assert optimizer.grad_norm() == pytest.approx(0.01, rel=1e-3)


def test_state_round_trip_continues_bit_for_bit():
    model, optimizer = make()
    for step in range(3):
        one_step(model, optimizer, step)
    other, fresh = make(seed=1)
    other.load_state_dict(model.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in optimizer.state_dict().values())
    for step in range(3, 6):
        one_step(model, optimizer, step)
        one_step(other, fresh, step)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_state_of_another_model_is_refused():
    model, optimizer = make()
    one_step(model, optimizer, 0)
    smaller = Optimizer(nn.Linear(3, 2), OptimConfig(), 10)
    with pytest.raises(KeyError):
        smaller.load_state_dict(optimizer.state_dict())
