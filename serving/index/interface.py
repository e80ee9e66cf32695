"""What every item index does, whatever stands behind it.

Legend: B queries, H heads (interests) of a query, D dimensions, I items (catalogue rows), C candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.index.rowset import Rows, RowSet


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Items found, best first: score descending, then row ascending.

    Attributes:
        rows: int64 [<= k] catalogue rows, each once, never -1.
        scores: float32 [<= k] exact dot products, the greatest over the heads.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class IndexStats:
    """What an index is.

    Attributes:
        kind: `exact`, `ivf`, `hnsw` or `scann`.
        rows: items in it.
        dim: length of their vectors.
        factory: the library's word for it; empty for `exact`.
        metric: `inner_product` or `l2_augmented` (the same order, as a distance); what `search` returns is the dot product in both.
        nlist, nprobe: lists of an `ivf` or `scann` index and how many of them a plain search visits; 0 for others.
        candidates: items that such a search rescores exactly, which of `hnsw` is efSearch; 0 for `exact`.
    """

    kind: str
    rows: int
    dim: int
    factory: str = ""
    metric: str = "inner_product"
    nlist: int = 0
    nprobe: int = 0
    candidates: int = 0


class VectorIndex(Protocol):
    """Maximum inner product search over the catalogue. Safe to call from several threads."""

    def search(
        self,
        query_HD: NDArray[np.float32],
        k: int,
        allowed: RowSet | None = None,
        excluded: Rows | None = None,
    ) -> SearchResult:
        """The k items of greatest dot product with any of the heads.

        Always min(k, items permitted) of them. `ExactIndex` finds the true ones; others a share that was measured when they were tuned.

        Args:
            query_HD: float32 [H, D]; [D] is one head.
            k: at least 1; more than the items permitted returns all of them.
            allowed: rows that may be returned; None = all.
            excluded: catalogue rows that may not be returned, in any order, repeated or not; None = none.

        Raises:
            RequestError: k is below 1, or the query holds NaN, infinity or numbers whose scores overflow.
            ValueError: shapes or rows do not belong to this catalogue.
        """
        ...

    def search_many(self, query_BHD: NDArray[np.float32], k: int, allowed: RowSet | None, excluded: Sequence[Rows]) -> list[SearchResult]:
        """What `search` finds for each of many queries, in their order; cheaper than one by one.

        Args:
            query_BHD: float32 [B, H, D].
            excluded: of each query.

        Raises:
            RequestError, ValueError: as `search` does for any of them.
        """
        ...

    def stats(self) -> IndexStats:
        """What the index is, for logs and health replies."""
        ...
