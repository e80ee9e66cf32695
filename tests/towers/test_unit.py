"""Unit length, and its gradient."""

import doctest

import torch

from towers import unit
from towers.unit import LEAST, normalise


def test_doctests() -> None:
    result = doctest.testmod(unit)
    assert (result.failed, result.attempted > 0) == (0, True)


def test_the_gradient_is_that_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normalise, (wide,))
    for scale in (1.0, 1e-7):  # so short that what is added counts
        vectors = (torch.randn(6, 4, generator=generator) * scale).requires_grad_()
        weight = torch.randn(6, 4, generator=generator)
        plain = vectors * torch.rsqrt(vectors.square().sum(-1, keepdim=True) + LEAST)
        (expected,) = torch.autograd.grad((plain * weight).sum(), vectors)
        (got,) = torch.autograd.grad((normalise(vectors) * weight).sum(), vectors)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 / scale)


def test_zero_stays_zero_with_finite_gradients() -> None:
    zero = torch.zeros(2, 4, requires_grad=True)
    out = normalise(zero)
    out.sum().backward()
    assert zero.grad is not None
    assert not out.any() and torch.isfinite(zero.grad).all()
    assert normalise(torch.ones(1, 4, dtype=torch.bfloat16)).dtype == torch.float32
