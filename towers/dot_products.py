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
_PAIRS = 1 << 16
"""Pairs rescored at a time."""


class Shape(NamedTuple):
    """How I items are grouped: N groups of G, M coarse ones; N * G >= I."""

    groups: int
    size: int
    coarse: int

    @classmethod
    def of(cls, items: int, k: int) -> Self:
        """Coarse groups 16 times as many as k; groups of about sqrt(I / k) / 2 items, which weighs both passes."""
        together = 1 << max(0, int(math.log2(max(1.0, items / (16 * k)))))
        size = min(together, 1 << max(0, round(math.log2(max(1.0, items / k)) / 2) - 1))
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

    def exact(self, query_P: Tensor, item_P: Tensor) -> Tensor:
        """float32 [P]: the exact scores of pairs."""
        scores_P = torch.empty(len(query_P), device=self.item_ID.device)
        for start in range(0, len(query_P), _PAIRS):
            block = slice(start, start + _PAIRS)
            user_PHD, item_PD = self.user_QHD[query_P[block]].double(), self.item_ID[item_P[block]]
            scores_P[block] = (user_PHD * item_PD.unsqueeze(1)).sum(2).amax(1).float()
        return scores_P


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
        rounded = item_WD[:items].float()
        self._longest = _longest(products.item_ID) if items else 0.0
        self._longest_off = _longest(products.item_ID - rounded) if items else 0.0
        self._rounding = torch.finfo(kind).eps / 2 if products.half else 0.0
        # Sums of D products in float32, with room to spare; torch may be told to multiply float32 with fewer bits.
        self._sum = (dim + 8) * 2.0**-22 + (0.0 if torch.get_float32_matmul_precision() == "highest" else 2.0**-6)
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
        query_S, group_S = torch.nonzero((highest_BN >= least_B1) & (highest_BN > -torch.inf), as_tuple=True)
        cell_SG = (query_S * (groups * size) + group_S).unsqueeze(1) + self._offsets_G
        score_SG = score_BW.view(-1)[cell_SG]
        place_P, within_P = torch.nonzero((score_SG >= least_B1[query_S]) & (score_SG > -torch.inf), as_tuple=True)
        return query_S[place_P], group_S[place_P] + within_P * groups

    def _least(self, queries: slice, coarse_BM: Tensor) -> Tensor:
        """[B, 1]: the least approximate score that may belong among the k best, in the scores' own precision."""
        if coarse_BM.shape[1] < self._k:
            return torch.full_like(coarse_BM[:, :1], -torch.inf)
        kth_B1 = coarse_BM.float().topk(self._k, dim=1, sorted=False).values.amin(1, keepdim=True)
        user_BHD = self._products.user_QHD[queries]
        rounded_BHD = user_BHD.to(coarse_BM.dtype).float()
        off_B1, long_B1 = ((v.norm(dim=2).amax(1, keepdim=True)) for v in (user_BHD - rounded_BHD, rounded_BHD))
        # Below the smallest normal number products may be flushed to zero.
        tiny = user_BHD.shape[2] * 2.0**-124 * (1 + self._longest + user_BHD.abs().amax((1, 2)).unsqueeze(1))
        reach = self._longest + self._longest_off
        error_B1 = (off_B1 * reach + long_B1 * self._longest_off + long_B1 * reach * self._sum) * 1.001 + tiny
        # Rounding keeps order, so the bound may be rounded as the scores were.
        least_B1: Tensor = kth_B1 - kth_B1.abs() * (self._rounding * 1.001 + 2.0**-20) - 2 * error_B1
        return least_B1.to(coarse_BM.dtype)


def _longest(vectors: Tensor) -> float:
    return float(vectors.norm(dim=1).max())
