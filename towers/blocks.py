"""What the causal history encoder is built of: positions in, positions out, each looking back only.

Legend: B rows, L history positions (right-aligned, newest last), D dim, H attention heads, K = D / H, Q query positions (L or 1).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from towers.features import linear

MASKED = -1e9
"""Added to scores that must not count. Finite, so that a row without any valid position gives no NaN."""


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) with a share rounded to 1/256, so that one random number serves eight elements.

    On a CPU the numbers come from NumPy, seeded by torch's generator, and masks are made as bits: together some twenty times cheaper than
    torch's dropout, which is a tenth of a training step here.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.threshold = round(share * 256)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.threshold:
            return x
        return x * (self._bits(x) if x.device.type == "cpu" and x.dtype in _INTEGERS else self._mask(x))

    def _mask(self, x: Tensor) -> Tensor:
        words = torch.empty(x.numel() // 8 + 1, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.threshold
        return kept.to(x.dtype).mul_(256 / (256 - self.threshold))

    def _bits(self, x: Tensor) -> Tensor:
        """The same mask: all bits of the factor where an element stays, none where it goes."""
        seed = int(torch.empty((), dtype=torch.int64).random_())
        kept = np.random.SFC64(seed).random_raw(x.numel() // 8 + 1).view(np.uint8)[: x.numel()] >= self.threshold
        integer = _INTEGERS[x.dtype]
        factor = torch.tensor(256 / (256 - self.threshold), dtype=x.dtype).view(integer)
        return torch.from_numpy(kept.view(np.int8)).to(integer).neg_().bitwise_and_(factor).view(x.dtype).view(x.shape)


_INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}
"""Integers as wide as a number."""


class Block(nn.Module):
    """Attention with a learned bias by query-key distance, then a two-layer ReLU network; both pre-norm and residual.

    Every second head starts with a bias of -log(1 + distance), so with weights that fall as 1 / (1 + distance); the others start even.
    What came last matters most wherever order matters, and learning that from nothing costs epochs.

    Args:
        dim, heads: D and H.
        length: longest history.
        dropout: share of what each half adds.
    """

    def __init__(self, dim: int, heads: int, length: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.length = heads, length
        self.norm_attention, self.norm_mlp = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value, self.out = linear(dim, dim), linear(dim, 2 * dim), linear(dim, dim)
        self.up, self.down = linear(dim, 2 * dim), linear(2 * dim, dim)
        near_H = (torch.arange(heads) % 2 == 0).float()
        self.bias_LH = nn.Parameter(-torch.log1p(torch.arange(length).float()).unsqueeze(1) * near_H)
        self.drop = Dropout(dropout)

    def forward(self, x_BLD: Tensor, padding_B11L: Tensor | None, last_only: bool) -> Tensor:
        """[B, L, D] -> [B, L, D], or [B, 1, D] with `last_only`. Padding is added to scores; None = no row has any."""
        length = x_BLD.shape[1]
        first = length - 1 if last_only else 0
        query_BHQK, key_BHLK, value_BHLK = self._query_key_value(self.norm_attention(x_BLD), first)
        bias_HQL = self._bias(length)[:, first:]
        # to one type first: sums of two types, and their gradients, are several times slower
        scores_BHQL = torch.matmul(query_BHQK, key_BHLK.transpose(-1, -2)).to(bias_HQL.dtype) + bias_HQL
        if padding_B11L is not None:
            scores_BHQL = scores_BHQL + padding_B11L
        mixed_BQD = torch.matmul(torch.softmax(scores_BHQL, dim=-1), value_BHLK).transpose(1, 2).flatten(2)
        attended_BQD: Tensor = x_BLD[:, first:] + self.drop(self.out(mixed_BQD))
        output_BQD: Tensor = attended_BQD + self.drop(self.down(F.relu(self.up(self.norm_mlp(attended_BQD)))))
        return output_BQD

    def _query_key_value(self, normed_BLD: Tensor, first: int) -> tuple[Tensor, Tensor, Tensor]:
        """By head, queries from position `first` on and scaled."""
        scale = (self.out.in_features // self.heads) ** -0.5
        if first:
            key, value = self.key_value(normed_BLD).chunk(2, dim=-1)
            return self._split(self.query(normed_BLD[:, first:]) * scale), self._split(key), self._split(value)
        # one product for all three
        weight = torch.cat([self.query.weight * scale, self.key_value.weight])
        bias = torch.cat([self.query.bias * scale, self.key_value.bias])
        query, key, value = F.linear(normed_BLD, weight, bias).chunk(3, dim=-1)
        return self._split(query), self._split(key), self._split(value)

    def _split(self, x_BLD: Tensor) -> Tensor:
        size, length, dim = x_BLD.shape
        heads_BHLK: Tensor = x_BLD.reshape(size, length, self.heads, dim // self.heads).transpose(1, 2)
        return heads_BHLK

    def _bias(self, length: int) -> Tensor:
        """[H, L, L]: the learned bias of each query-key distance; MASKED where the key is newer than the query.

        A row is the one above, shifted by one: laid out with 2 L numbers a row and read with 2 L - 1, equal rows shift by themselves, and
        the gradient is a plain sum instead of L^2 lookups.
        """
        oldest_first_HL = self.bias_LH[:length].t().flip(1)
        if length > self.length:  # further back is as far as the furthest
            oldest_first_HL = torch.cat([oldest_first_HL[:, :1].expand(-1, length - self.length), oldest_first_HL], 1)
        row_HX = torch.cat([oldest_first_HL, torch.full_like(oldest_first_HL, MASKED)], 1)
        rows_HY = row_HX.unsqueeze(1).expand(-1, length, -1).flatten(1)[:, : length * (2 * length - 1)]
        return rows_HY.view(self.heads, length, 2 * length - 1)[:, :, length - 1 :]
