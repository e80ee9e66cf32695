"""Sums and means of a table's rows, a bag of them at a time.

Legend: B bags, M values of a bag, L history positions, V rows of the table, n valid values of all bags, D dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from towers.columns import PAD_ROW


def bag_mean(table: nn.Embedding, rows: Tensor) -> Tensor:
    """Mean over the valid (non-padding) values of each row; zero where there is none: int [..., M] -> [..., D]."""
    valid = rows != PAD_ROW
    count = valid.sum(-1, keepdim=True).clamp(min=1)
    if torch.compiler.is_compiling():
        # ONNX has no bags; plain rows and a sum are the same numbers (the padding row is zero).
        plain: Tensor = table(rows).sum(-2)
        return plain / count
    total = _bags(table, rows.reshape(-1, rows.shape[-1]), valid.reshape(-1, rows.shape[-1]), None)
    return total.reshape(*rows.shape[:-1], table.embedding_dim) / count  # -1 could not be told where there are no rows


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
