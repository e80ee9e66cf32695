"""How item vectors lie inside a FAISS index, so that its order is the order of dot products.

Legend: D dimensions of the model, W width inside the index, H heads, C items of a block.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

METRICS = ("inner_product", "l2_augmented")


@dataclass(frozen=True)
class Layout:
    """Vectors of the model <-> vectors of the index.

    Items are divided by the largest norm and queries by their own: neither changes an order, and half precision and distances stay
    within range whatever the model's scale. `l2_augmented` appends sqrt(1 - |x|^2) to items and 0 to queries: all items then have
    norm 1 and the nearest is the one of greatest dot product (Bachrach et al., Speeding Up the Xbox Recommender System, 2014). Zeros fill
    the width up to a multiple of 8: 65 columns cost FAISS several times what 64 or 72 do.

    Attributes:
        dim: D.
        metric: one of METRICS.
        largest_norm: of the item vectors.
    """

    dim: int
    metric: str
    largest_norm: float

    @property
    def augmented(self) -> bool:
        return self.metric == "l2_augmented"

    @property
    def width(self) -> int:
        """W."""
        return -(-(self.dim + self.augmented) // 8) * 8

    def items(self, item_CD: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [C, W]."""
        item_CW = np.zeros((len(item_CD), self.width), np.float32)
        np.divide(item_CD, np.float32(self.largest_norm or 1.0), out=item_CW[:, : self.dim])
        if self.augmented:
            square_C = np.einsum("cw,cw->c", item_CW, item_CW)
            item_CW[:, self.dim] = np.sqrt(np.maximum(0.0, 1.0 - square_C))
        return item_CW

    def queries(self, query_HD: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32 [H, W], unit norm (a zero head stays zero)."""
        norm_H = np.sqrt(np.einsum("hd,hd->h", query_HD, query_HD, dtype=np.float64))
        norm_H[norm_H == 0] = 1.0
        query_HW = np.zeros((len(query_HD), self.width), np.float32)
        np.divide(query_HD, norm_H[:, None], out=query_HW[:, : self.dim], casting="same_kind")
        return query_HW
