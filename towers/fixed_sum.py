"""The sum of features of rows that are encoded at every step, such as all items of a catalogue: a fixed sparse matrix times all weights
stacked.

    sum_f x_f = M W,   dW = M^T dsum

Row c of M holds what item c takes of each row of W: 1 for its id's and its categories', 1/m for each of m values of a bag, its numbers for
their maps, 1 for their bias. Looked up one by one, the same sums and their gradients cost three times as much.

Legend: C rows encoded, T rows of all weights together, D dim, n entries of M.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from towers.columns import PAD_ROW
from towers.model_config import InputSpec

MAP, BIAS = "/map", "/bias"
"""Ends of the names of a map's weights: no feature's name holds a slash."""
WIDEST = 8
"""Numbers of a dense feature that are taken along: for more, a product of its own is cheaper."""


Layers = Callable[[InputSpec], nn.Module]
"""The table or the map of a feature: an nn.Embedding or an nn.Linear."""


@dataclass(frozen=True)
class FixedSum:
    """Some features of some rows; made by `lay_out`.

    Attributes:
        specs: the features.
        product: M, twice: [C, T] and [T, C].
        rows: in place of M where it would only pick out rows that lie one after the other: they are read where they lie.
    """

    specs: tuple[InputSpec, ...]
    product: tuple[Tensor, Tensor] | None
    rows: slice | None = None

    def __call__(self, layer_of: Layers) -> Tensor:
        """[C, D], fp32."""
        stacked = list(_stack(self.specs, layer_of).values())
        if self.product is None:
            return stacked[0][self.rows]
        total: Tensor = _Product.apply(*self.product, *stacked)  # type: ignore[no-untyped-call]
        return total


def lay_out(specs: Sequence[InputSpec], inputs: Mapping[str, Tensor], layer_of: Layers) -> FixedSum | None:
    """The features that one product can sum: None where there is none, or this build of torch has no fast product of sparse matrices.

    Args:
        inputs: of all rows, by name.
    """
    found = tuple(spec for spec in specs if _fits(spec, layer_of(spec)))
    if not found or inputs[found[0].name].device.type != "cpu" or not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return None
    picked = _one_after_the_other(found, inputs)
    if picked is not None:
        return FixedSum(found, None, picked)
    starts, rows = {}, 0
    for name, matrix in _stack(found, layer_of).items():
        starts[name], rows = rows, rows + len(matrix)
    places, columns, values = (torch.cat(parts) for parts in zip(*(_entries(s, inputs[s.name], starts) for s in found), strict=True))
    size = len(inputs[found[0].name])
    return FixedSum(found, (_csr(places, columns, values, size, rows), _csr(columns, places, values, rows, size)))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix_CT: Tensor, transpose_TC: Tensor, *stacked: Tensor) -> Tensor:
        ctx.save_for_backward(transpose_TC)
        ctx.rows = [len(matrix) for matrix in stacked]
        with torch.autocast("cpu", enabled=False):
            return matrix_CT @ (torch.cat(stacked) if len(stacked) > 1 else stacked[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (transpose_TC,) = ctx.saved_tensors
        with torch.autocast("cpu", enabled=False):
            return None, None, *(transpose_TC @ grads[0]).split(ctx.rows)


def _one_after_the_other(specs: Sequence[InputSpec], inputs: Mapping[str, Tensor]) -> slice | None:
    """The rows of the only feature, where it has one row each and these are consecutive."""
    if len(specs) > 1 or not specs[0].rows or specs[0].width:
        return None
    rows_C = inputs[specs[0].name].long()
    first = int(rows_C[0]) if len(rows_C) else 0
    consecutive = first > PAD_ROW and torch.equal(rows_C, torch.arange(first, first + len(rows_C)))
    return slice(first, first + len(rows_C)) if consecutive else None


def _fits(spec: InputSpec, layer: nn.Module) -> bool:
    if isinstance(layer, nn.Embedding):
        return not layer.sparse and layer.weight.dtype == torch.float32
    return spec.width <= WIDEST and isinstance(layer, nn.Linear) and layer.weight.dtype == torch.float32


def _stack(specs: Sequence[InputSpec], layer_of: Layers) -> dict[str, Tensor]:
    """All weights by name, [rows, D] each: a table that features share once."""
    found: dict[str, Tensor] = {}
    for spec in specs:
        layer = layer_of(spec)
        if isinstance(layer, nn.Embedding):
            found[spec.table] = layer.weight
        elif isinstance(layer, nn.Linear):
            found[spec.name + MAP] = layer.weight.t()
            if layer.bias is not None:
                found[spec.name + BIAS] = layer.bias.unsqueeze(0)
    return found


def _entries(spec: InputSpec, values: Tensor, starts: Mapping[str, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Of one feature: (row, column, value) of each entry of M."""
    size = len(values)
    every_C = torch.arange(size)
    if not spec.rows:
        number_CW = values.float()
        places = [every_C.repeat_interleave(spec.width)]
        columns = [torch.arange(spec.width).repeat(size) + starts[spec.name + MAP]]
        numbers = [number_CW.flatten()]
        if spec.name + BIAS in starts:
            places.append(every_C)
            columns.append(torch.full((size,), starts[spec.name + BIAS]))
            numbers.append(torch.ones(size))
        return torch.cat(places), torch.cat(columns), torch.cat(numbers)
    rows_CM = values.long().view(size, -1)
    valid_CM = rows_CM != PAD_ROW
    count_C = valid_CM.sum(1)
    share_n = count_C.clamp(min=1).float().reciprocal().repeat_interleave(count_C)
    return every_C.repeat_interleave(count_C), rows_CM[valid_CM] + starts[spec.table], share_n


def _csr(row_n: Tensor, column_n: Tensor, value_n: Tensor, rows: int, columns: int) -> Tensor:
    """A sparse matrix by rows, values of equal places summed, with indices of 32 bits, as MKL wants them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled", UserWarning)  # said though they are asked for
        pairs = torch.sparse_coo_tensor(torch.stack([row_n, column_n]), value_n, (rows, columns), check_invariants=True)
        wide = pairs.coalesce().to_sparse_csr()
        parts = wide.crow_indices().int(), wide.col_indices().int(), wide.values()
        return torch.sparse_csr_tensor(*parts, (rows, columns), check_invariants=True)
