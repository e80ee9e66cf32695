"""Blocks of scores for the fused softmax: 2 or e to their power, the sums of each row, and what they push the items by.

A block is some rows against all candidates, and is computed tile by tile: some of its columns at a time.

Legend: N rows, B rows of a block, C candidates, T candidates of a tile, D dim, E = D and the columns beside, S candidates of a sample.
"""

import math
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

TILE_BYTES = 1 << 22
"""Of scores computed at a time: they stay in the cache between the products that use them."""
FEWEST_ROWS, WIDE_ROWS = 64, 512
"""Of a block: fewer than WIDE_ROWS would have the products pack the candidates again for little work, and FEWEST_ROWS is the least."""
BLOCK_BYTES = 1 << 26
"""Of a block in more than one tile, if FEWEST_ROWS are no more."""
CUDA_BLOCK_SHARE = 1 / 32
"""Of a GPU's memory for a block: its products want to be large, and each block adds to the gradient of all items once. It has one tile."""
EVEN = 32
"""Rows of a block and columns of a tile are multiples: the remainder of a product costs as much as so many of them."""
WIDEST_RANGE = 40.0
"""Scores lie within [-x, x], and factors within [exp(-x), 1]: 1e20 such terms have a finite sum in fp32 and bf16, the least is normal."""
WIDEST_RANGE_BF16 = 16.0
"""Past it, bf16 numbers lie 1/8 or more apart, too coarse for a score: it must come less its row's guess."""
WIDEST_GUESSED = 128.0
"""Within [-x, x] a guess serves; beyond, each row is shifted by its own maximum, in fp32."""
GUESS_FROM = 256
"""Candidates that a row's maximum is guessed from."""
HEADROOM = 60.0
"""Powers of 2 by which a score may exceed its row's guess."""
LEAST_SUM = 2.0**-100
"""Of a row, over 2 to its guess: what is too small to be raised is then below fp32's rounding of the sum."""
LOG2_E = 1 / math.log(2)
_NOBODY = -1e4
"""Log factor of a candidate that counts for nobody: -inf would become NaN on the way."""


class GuessTooHigh(Exception):
    """A row's maximum was guessed so far above the rest of it that nothing of the rest is left."""


def block_rows(rows: int, columns: int, kind: torch.dtype, device: torch.device) -> int:
    """Rows of a block: all blocks about alike, since a short last one would cost the third product nearly as much as a full one."""
    row_bytes = kind.itemsize * max(1, columns)
    if device.type == "cuda":
        most = int(CUDA_BLOCK_SHARE * torch.cuda.get_device_properties(device).total_memory) // row_bytes
    else:
        most = max(TILE_BYTES // row_bytes, min(WIDE_ROWS, BLOCK_BYTES // row_bytes))
    return _alike(rows, max(FEWEST_ROWS, most))


def tiles(rows: int, columns: int, kind: torch.dtype, device: torch.device) -> list[slice]:
    """The columns of each tile of a block of so many rows."""
    wide = columns if device.type == "cuda" else _alike(columns, max(FEWEST_ROWS, TILE_BYTES // (kind.itemsize * max(1, rows))))
    return [slice(start, min(start + wide, columns)) for start in range(0, max(1, columns), max(1, wide))]


def _alike(n: int, most: int) -> int:
    """How many at a time, at most about `most`, so that all parts of n are about as large."""
    even = -(-n // max(1, -(-n // most)))
    return max(1, min(n, -(-even // EVEN) * EVEN))


class Bounded:
    """Scores of bounded vectors, in units of log 2: score, log k and the row's guess are one product."""

    def __init__(self, user_ND: Tensor, item_CD: Tensor, log_k_C: Tensor | None, bound: float, half: bool) -> None:
        kind = torch.bfloat16 if half and user_ND.dtype == torch.float32 else user_ND.dtype
        self._kind = kind
        self._item_CD = item_CD.to(kind)
        one = user_ND.new_ones(())
        left: list[Tensor] = []
        right: list[Tensor] = []
        log2_k_C = None if log_k_C is None else (log_k_C * LOG2_E).clamp(min=_NOBODY)
        if log2_k_C is not None and bool(log2_k_C.any()):
            left, right = [one], [log2_k_C]
            if kind == torch.bfloat16:  # one column rounds it, the second holds what the first has lost
                left, right = [one, one], [log2_k_C.to(kind), log2_k_C - log2_k_C.to(kind)]
        self._guess_N = None
        if bound > (WIDEST_RANGE_BF16 if kind == torch.bfloat16 else WIDEST_RANGE):
            few = slice(None, None, max(1, len(item_CD) // GUESS_FROM))
            score_NS = _columns(user_ND * LOG2_E, left, kind) @ _columns(item_CD[few], [c[few] for c in right], kind).t()
            # no score is above bound, so none is out of reach
            self._guess_N = score_NS.amax(1).float().clamp(min=bound * LOG2_E - HEADROOM).to(kind).to(user_ND.dtype)
            left, right = [*left, -self._guess_N], [*right, one]
        self._user_NE = _columns(user_ND * LOG2_E, left, kind)
        self._item_EC = (_columns(item_CD, right, kind) if right else self._item_CD).t()
        # a GPU adds up the rows in the same product; a CPU, whose products take the time of their columns, beside it
        self._item_C1 = _columns(item_CD, [one], kind) if user_ND.device.type == "cuda" else None
        self.rows = block_rows(len(user_ND), len(item_CD), kind, user_ND.device)
        self.tiles = tiles(self.rows, len(item_CD), kind, user_ND.device)
        self._score = _scratch(self.rows * len(item_CD), kind, user_ND.device)
        # the way round that each product is faster; bf16 ones are added up in fp32
        self._grad_CD = (
            torch.empty_like(item_CD)
            if kind == torch.bfloat16
            else torch.zeros_like(item_CD.t(), memory_format=torch.contiguous_format).t()
        )

    def scores(self, block: slice, tile: slice) -> Tensor:
        score_BT = self._tile(block, tile)
        return torch.mm(self._user_NE[block], self._item_EC[:, tile], out=score_BT)

    def raised(self, block: slice, score_BT: Tensor) -> tuple[Tensor, Tensor | float]:
        return score_BT.exp2_(), 0.0 if self._guess_N is None else self._guess_N[block] / LOG2_E

    def sums(self, exp_BT: Tensor, tile: slice) -> tuple[Tensor, Tensor]:
        wide, dim = self._grad_CD.dtype, self._item_CD.shape[1]
        if self._item_C1 is None:
            return torch.mm(exp_BT, self._item_CD[tile]).to(wide), exp_BT.sum(1).to(wide)
        sum_BE = torch.mm(exp_BT, self._item_C1[tile]).to(wide)
        return sum_BE[:, :dim], sum_BE[:, dim]

    def check(self, z_B: Tensor) -> None:
        """Raises GuessTooHigh where too little is left of a row."""
        if self._guess_N is not None and bool((z_B < LEAST_SUM).any()):
            raise GuessTooHigh

    def push(self, block: slice, tile: slice, user_BD: Tensor) -> None:
        exp_BT, grad_TD = self._tile(block, tile), self._grad_CD[tile]
        if self._kind != torch.bfloat16:
            grad_TD.t().addmm_(user_BD.t(), exp_BT)
            return
        pushed_TD = torch.mm(exp_BT.t(), user_BD.to(self._kind))
        if block.start:
            grad_TD.add_(pushed_TD)
        else:
            grad_TD.copy_(pushed_TD)

    def pushed(self) -> Tensor:
        return self._grad_CD.contiguous()

    def _tile(self, block: slice, tile: slice) -> Tensor:
        """Tiles of a block lie one after the other."""
        rows, columns = block.stop - block.start, tile.stop - tile.start
        return self._score[rows * tile.start : rows * tile.stop].view(rows, columns)


class Shifted:
    """Scores of any size: each row is shifted by its own maximum, factors included, in full precision."""

    def __init__(self, user_ND: Tensor, item_CD: Tensor, log_k_C: Tensor | None) -> None:
        self._user_ND, self._item_CD = user_ND, item_CD
        self._log_k_C = item_CD.new_zeros(len(item_CD)) if log_k_C is None else log_k_C
        self.rows = block_rows(len(user_ND), len(item_CD), user_ND.dtype, user_ND.device)
        self.tiles = [slice(0, len(item_CD))]  # the maximum is that of a whole row
        self._exp_BC = user_ND
        self._grad_CD = torch.zeros_like(item_CD)

    def scores(self, block: slice, tile: slice) -> Tensor:
        return torch.addmm(self._log_k_C, self._user_ND[block], self._item_CD.t())

    def raised(self, block: slice, score_BC: Tensor) -> tuple[Tensor, Tensor | float]:
        highest_B = score_BC.amax(1).nan_to_num(neginf=0.0)
        self._exp_BC = score_BC.sub_(highest_B.unsqueeze(1)).exp_()
        return self._exp_BC, highest_B

    def sums(self, exp_BC: Tensor, tile: slice) -> tuple[Tensor, Tensor]:
        return exp_BC @ self._item_CD, exp_BC.sum(1)

    def check(self, z_B: Tensor) -> None:
        """A row's maximum is in its sum: there is always something left."""

    def push(self, block: slice, tile: slice, user_BD: Tensor) -> None:
        self._grad_CD.addmm_(self._exp_BC.t(), user_BD)

    def pushed(self) -> Tensor:
        return self._grad_CD


_held = threading.local()


def _scratch(numbers: int, kind: torch.dtype, device: torch.device) -> Tensor:
    """Memory for the scores of a block, the same at every step: fresh memory would be given page by page, at the cost of a product."""
    if device.type == "cuda":
        return torch.empty(numbers, dtype=kind, device=device)  # torch keeps a GPU's memory itself
    held: Tensor | None = getattr(_held, "scores", None)
    if held is None or held.dtype != kind or len(held) < numbers:
        held = _held.scores = torch.empty(numbers, dtype=kind)
    return held


def _columns(vectors: Tensor, more: Sequence[Tensor], kind: torch.dtype) -> Tensor:
    """Vectors with more columns (or scalars), and zeros up to an even number, as bf16 products take them in pairs (on a GPU up to 16
    bytes); alone where there are none."""
    rows, dim = vectors.shape
    if not more:
        return vectors.to(kind)
    even = 16 // kind.itemsize if vectors.device.type == "cuda" else 2
    wide = torch.zeros(rows, -(-(dim + len(more)) // even) * even, dtype=kind, device=vectors.device)
    wide[:, :dim] = vectors
    for place, column in enumerate(more, start=dim):
        wide[:, place] = column
    return wide
