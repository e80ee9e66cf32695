"""Sums and means of a table's rows, a bag of them at a time.

Legend: B, C bags, M values of a bag, L history positions, V rows of the table, n valid values of all bags, D dim.
"""

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from towers.columns import PAD_ROW


class FixedBags(NamedTuple):
    """Bags as sparse matrices: [C, V], whose product with a table gives their means, and its transpose, which the gradient takes."""

    means_CV: Tensor
    by_value_VC: Tensor


def bag_mean(table: nn.Embedding, rows: Tensor, fixed: FixedBags | None = None) -> Tensor:
    """Mean over the valid (non-padding) values of each row; zero where there is none: int [..., M] -> [..., D].

    Args:
        fixed: what `fixed_bags` made of `rows`.
    """
    if fixed is not None:
        means: Tensor = _FixedMean.apply(table.weight, *fixed)  # type: ignore[no-untyped-call]
        return means
    valid = rows != PAD_ROW
    count = valid.sum(-1, keepdim=True).clamp(min=1)
    if torch.compiler.is_compiling():
        # ONNX has no bags; plain rows and a sum are the same numbers (the padding row is zero).
        plain: Tensor = table(rows).sum(-2)
        return plain / count
    total = _bags(table, rows.reshape(-1, rows.shape[-1]), valid.reshape(-1, rows.shape[-1]), None)
    return total.reshape(*rows.shape[:-1], table.embedding_dim) / count  # -1 could not be told where there are no rows


def fixed_bags(rows_CM: Tensor, table_rows: int) -> FixedBags | None:
    """Bags that are summed at every step, such as the titles of all items: their sums then cost a third of looking the values up. None
    where this build of torch has no fast product of sparse matrices.

    Args:
        table_rows: V.
    """
    if rows_CM.device.type != "cpu" or not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return None
    valid_CM = rows_CM != PAD_ROW
    count_C = valid_CM.sum(1)
    share_n = count_C.clamp(min=1).float().reciprocal().repeat_interleave(count_C)
    place_n, row_n = torch.arange(len(rows_CM)).repeat_interleave(count_C), rows_CM[valid_CM].long()
    return FixedBags(_csr(place_n, row_n, share_n, len(rows_CM), table_rows), _csr(row_n, place_n, share_n, table_rows, len(rows_CM)))


class _FixedMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight_VD: Tensor, means_CV: Tensor, by_value_VC: Tensor) -> Tensor:
        ctx.save_for_backward(by_value_VC)
        with torch.autocast("cpu", enabled=False):
            return means_CV @ weight_VD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (by_value_VC,) = ctx.saved_tensors
        (grad_CD,) = grads
        with torch.autocast("cpu", enabled=False):
            return by_value_VC @ grad_CD, None, None


def _csr(row_n: Tensor, column_n: Tensor, value_n: Tensor, rows: int, columns: int) -> Tensor:
    """A sparse matrix by rows, values of equal places summed, with indices of 32 bits, as MKL wants them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        pairs = torch.sparse_coo_tensor(torch.stack([row_n, column_n]), value_n, (rows, columns), check_invariants=True)
        wide = pairs.coalesce().to_sparse_csr()
        parts = wide.crow_indices().int(), wide.col_indices().int(), wide.values()
        return torch.sparse_csr_tensor(*parts, (rows, columns), check_invariants=True)


def rows_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """Mean of gathered rows over valid values; zero where there is none: [..., M, D], [..., M] -> [..., D]."""
    return (rows * mask.unsqueeze(-1)).sum(-2) / mask.sum(-1, keepdim=True).clamp(min=1.0)


def pool_rows(table: nn.Embedding, rows_BL: Tensor, weights_BL: Tensor) -> Tensor:
    """Weighted sums of a table's rows, padding left out: int [B, L], [B, L] -> [B, D]. The rows themselves are never copied."""
    return _bags(table, rows_BL, rows_BL != PAD_ROW, weights_BL)


def _bags(table: nn.Embedding, rows_BL: Tensor, valid_BL: Tensor, weights_BL: Tensor | None) -> Tensor:
    """Sums of the valid rows; what is not valid costs nothing, backward neither."""
    counts_B = valid_BL.sum(1)
    return F.embedding_bag(
        rows_BL[valid_BL],
        table.weight,
        (counts_B.cumsum(0) - counts_B).to(rows_BL.dtype),
        mode="sum",
        per_sample_weights=None if weights_BL is None else weights_BL[valid_BL].to(table.weight.dtype),
        sparse=table.sparse,
    )
