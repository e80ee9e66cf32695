"""Vectors of length 1. Legend: D dim."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

LEAST = 1e-12
"""Added to a vector's squared length, so that a zero vector stays zero."""


def normalise(vectors: Tensor) -> Tensor:
    """[..., D] to length 1, in fp32 at least: y = v / sqrt(<v, v> + LEAST).

    >>> normalise(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    wide = vectors if vectors.dtype == torch.float64 else vectors.float()
    if torch.compiler.is_compiling():  # ONNX has no operation of ours, and the exporter takes so small a term for nothing
        return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True).clamp(min=LEAST))
    unit: Tensor = _Unit.apply(wide)  # type: ignore[no-untyped-call]
    return unit


class _Unit(torch.autograd.Function):
    """With y = r v and r = 1 / sqrt(<v, v> + LEAST), dv = r (dy - <dy, y> y): half the passes that autograd makes, which for all items of a
    catalogue are milliseconds."""

    @staticmethod
    def forward(ctx: Any, wide: Tensor) -> Tensor:
        inverse = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().add_(LEAST).rsqrt_()
        unit: Tensor = wide * inverse
        ctx.save_for_backward(unit, inverse)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        unit, inverse = ctx.saved_tensors
        (grad,) = grads
        along = (grad * unit).sum(-1, keepdim=True)
        return torch.addcmul(grad, unit, along, value=-1).mul_(inverse)
