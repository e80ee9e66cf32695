"""Dot products and their k best: bf16 products find candidates, a bound proves that none is missing, exact scores order them.

Legend: Q queries, B queries of a block, I items, H heads (interests), D dimensions, N groups of G items, M coarse groups of N / M groups,
P (query, item) pairs.

A pair's score is its dot product summed in float64 and rounded to float32: it depends on the two vectors alone, not on blocks, on the
machine or on the precision of the products below.

With a = approximate score and e = exact score, |a - e| <= E + r |a|, where r is the rounding of the product's result and, by
Cauchy-Schwarz, E = |u - u'| max|v| + |u'| max|v - v'| + rounding of the sum (u', v' as the product reads them). If k items have a >= t,
the k-th best exact score is at least L = t - r |t| - E, so an item that belongs among the best has a >= L - E. All such items are
candidates: about 1.5 k in bf16, and all of them where everything ties. t is the k-th greatest maximum of coarse groups: k groups hold k
items at least as good. Groups are strided (items n, n + N, n + 2 N, ...), so that maxima are element-wise.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from towers.errors import DataError

_LARGEST = 1e38
_PAIRS = 4096
"""Pairs rescored at a time, in arrays kept for it: fresh ones of this size would cost more than the sums."""


class Shape(NamedTuple):
    """How I items are grouped: N groups of G, M coarse ones; N * G >= I."""

    groups: int
    size: int
    coarse: int

    @classmethod
    def of(cls, items: int, k: int) -> Self:
        """Coarse groups 16 times as many as k; groups of about sqrt(I / k) / 4 items, which weighs both passes."""
        together = 1 << max(0, int(math.log2(max(1.0, items / (16 * k)))))
        size = min(together, 1 << max(0, round(math.log2(max(1.0, items / k)) / 2) - 2))
        per_coarse = together // size
        coarse = -(-items // (together * 8)) * 8
        return cls(coarse * per_coarse, size, coarse)


@dataclass(frozen=True)
class DotProducts:
    """A model's scores. Made by `dot_products`.

    Attributes:
        user_QHD: query vectors; with several heads an item's score is its greatest over the heads.
        item_ID: item vectors.
        half: find candidates with bf16 products.
    """

    user_QHD: Tensor
    item_ID: Tensor
    half: bool

    def __len__(self) -> int:
        return len(self.user_QHD)

    def part(self, queries: slice) -> "DotProducts":
        """The same items for some of the queries."""
        return DotProducts(self.user_QHD[queries], self.item_ID, self.half)


def dot_products(user_QD: Tensor | NDArray[np.float32], item_ID: Tensor | NDArray[np.float32], half: bool = False) -> DotProducts:
    """Check vectors, and put them on the device of the items.

    Args:
        user_QD: [Q, D] or [Q, H, D].
        item_ID: [I, D].
        half: find candidates with bf16 products; the result is the same. Only where the processor multiplies bf16 natively does it pay.

    Raises:
        DataError: vectors are not finite, their products overflow, or their shapes do not fit.
    """
    item = torch.as_tensor(item_ID).detach().float()
    user = torch.as_tensor(user_QD).detach().to(item.device).float()
    if item.ndim != 2 or user.ndim not in (2, 3) or user.shape[-1] != item.shape[-1]:
        raise DataError(f"user vectors {tuple(user.shape)} and item vectors {tuple(item.shape)}: expected [Q, D] or [Q, H, D] and [I, D]")
    for name, vectors in (("user", user), ("item", item)):
        bad = int((~torch.isfinite(vectors)).flatten(1).any(1).sum())
        if bad:
            raise DataError(f"{bad} of {len(vectors)} {name} vectors hold NaN or infinity, so nothing can be ranked. Did training diverge?")
    longest = [float(v.double().square().sum(-1).max().sqrt()) if len(v) else 0.0 for v in (user, item)]
    if max(*longest, longest[0] * longest[1]) > _LARGEST:
        raise DataError(f"a score may overflow: the longest user vector is {longest[0]:.3g} and the longest item vector {longest[1]:.3g}")
    # On a GPU, sums of bf16 products may be rounded on the way, which the bound does not know of; float32 is fast enough there.
    return DotProducts(user.unsqueeze(1) if user.ndim == 2 else user, item, half and item.device.type == "cpu")


class Finder:
    """Finds the candidates of blocks of queries.

    Args:
        products: the vectors.
        k: how many best items are wanted.
        block: most queries of a block.
    """

    def __init__(self, products: DotProducts, k: int, block: int) -> None:
        items, dim = products.item_ID.shape
        self._products, self._k, self.shape = products, k, Shape.of(items, k)
        kind = torch.bfloat16 if products.half else torch.float32
        heads, width = products.user_QHD.shape[1], self.shape.groups * self.shape.size
        device = products.item_ID.device
        item_WD = torch.zeros(width, dim, dtype=kind, device=device)
        item_WD[:items] = products.item_ID
        self._item_DW = item_WD.T
        self._buffer = torch.empty(block * heads, width, dtype=kind, device=device)
        self._rounding = torch.finfo(kind).eps / 2 if products.half else 0.0
        self._error_Q1 = self._errors(products.user_QHD, item_WD[:items].float(), dim)
        self._item_PD = torch.empty(_PAIRS, dim, device=device)
        self._wide_PD = self._item_PD.double()
        self._user_PHD = torch.empty(_PAIRS, heads, dim, dtype=torch.float64, device=device)
        self._offsets_G = torch.arange(self.shape.size, device=device) * self.shape.groups

    def approximate(self, queries: slice) -> Tensor:
        """[B, W]: approximate scores of a block, -inf in the columns past the items; overwritten by the next call."""
        user_BHD = self._products.user_QHD[queries]
        heads, out_CW = user_BHD.shape[1], self._buffer[: user_BHD.shape[0] * user_BHD.shape[1]]
        torch.mm(user_BHD.flatten(0, 1).to(out_CW.dtype), self._item_DW, out=out_CW)
        out_CW[:, len(self._products.item_ID) :] = -torch.inf
        return out_CW if heads == 1 else out_CW.view(len(user_BHD), heads, -1).amax(1)

    def candidates(self, queries: slice, score_BW: Tensor) -> tuple[Tensor, Tensor]:
        """(query of the block, item) of every pair that may belong among the k best; masked pairs (-inf) never do."""
        groups, size, coarse = self.shape
        rows = len(score_BW)
        highest_BN = score_BW.view(rows, size, groups).amax(1)
        coarse_BM = highest_BN.view(rows, -1, coarse).amax(1)
        least_B1 = self._least(queries, coarse_BM)
        query_S, group_S = torch.nonzero(highest_BN >= least_B1, as_tuple=True)
        cell_SG = (query_S * (groups * size) + group_S).unsqueeze(1) + self._offsets_G
        score_SG = score_BW.view(-1)[cell_SG]
        place_P, within_P = torch.nonzero(score_SG >= least_B1[query_S], as_tuple=True)
        return query_S[place_P], group_S[place_P] + within_P * groups

    def exact(self, queries: slice, query_P: Tensor, item_P: Tensor) -> Tensor:
        """float32 [P]: the exact scores of pairs (query of the block, item)."""
        user_BHD = self._products.user_QHD[queries].double()
        score_P = torch.empty(len(query_P), device=item_P.device)
        for start in range(0, len(query_P), _PAIRS):
            block = slice(start, min(start + _PAIRS, len(query_P)))
            size = block.stop - start
            item_PD, user_PHD, wide_PD = self._item_PD[:size], self._user_PHD[:size], self._wide_PD[:size]
            torch.index_select(self._products.item_ID, 0, item_P[block], out=item_PD)
            torch.index_select(user_BHD, 0, query_P[block], out=user_PHD)
            score_P[block] = user_PHD.mul_(wide_PD.copy_(item_PD).unsqueeze(1)).sum(2).amax(1)
        return score_P

    def _least(self, queries: slice, coarse_BM: Tensor) -> Tensor:
        """[B, 1]: the least approximate score that may belong among the k best, in the scores' own precision; never -inf."""
        lowest = torch.finfo(coarse_BM.dtype).min
        if coarse_BM.shape[1] < self._k:
            return torch.full_like(coarse_BM[:, :1], lowest)
        kth_B1 = coarse_BM.float().topk(self._k, dim=1, sorted=False).values.amin(1, keepdim=True)
        # Rounding keeps order, so the bound may be rounded as the scores were.
        least_B1 = kth_B1 - kth_B1.abs() * (self._rounding * 1.001 + 2.0**-20) - 2 * self._error_Q1[queries]
        return least_B1.to(coarse_BM.dtype).clamp_(min=lowest)

    def _errors(self, user_QHD: Tensor, rounded_ID: Tensor, dim: int) -> Tensor:
        """[Q, 1]: E of each query."""
        item_ID = self._products.item_ID
        longest, longest_off = _longest(item_ID), _longest(item_ID - rounded_ID)
        rounded_QHD = user_QHD.to(self._buffer.dtype).float()
        off_Q1, long_Q1 = (v.norm(dim=2).amax(1, keepdim=True) for v in (user_QHD - rounded_QHD, rounded_QHD))
        reach = longest + longest_off
        # Sums of D products in float32, with room to spare; torch may be told to multiply float32 with fewer bits.
        summed = (dim + 8) * 2.0**-22 + (0.0 if torch.get_float32_matmul_precision() == "highest" else 2.0**-6)
        # Below the smallest normal number products may be flushed to zero.
        tiny_Q1 = dim * 2.0**-124 * (1 + longest + user_QHD.abs().amax((1, 2)).unsqueeze(1))
        error_Q1: Tensor = (off_Q1 * reach + long_Q1 * longest_off + long_Q1 * reach * summed) * 1.001 + tiny_Q1
        return error_Q1


def _longest(vectors: Tensor) -> float:
    return float(vectors.norm(dim=1).max()) if len(vectors) else 0.0
