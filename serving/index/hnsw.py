"""FAISS' HNSW: a graph that leads from item to nearer item (Malkov and Yashunin, Efficient and robust approximate nearest neighbor search
using Hierarchical Navigable Small World graphs, 2018).

At 59,000 x 64 it takes five to seven times what inverted lists of codes do at the same recall, and its file is nine times as large. It
pays where lists do not reach the floor: of 30,000 random directions in 64 dimensions half of the lists hold 0.92 of the true hundred, and
a graph finds 0.99 of them.

Legend: I items, H heads, D dimensions, W width inside the graph, C candidates.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.index.build import BLOCK_ROWS, THREADS
from serving.index.exact import ExactIndex
from serving.index.faiss_files import read_faiss, write_faiss
from serving.index.layout import Layout
from serving.index.meta import FAISS_FILE, IndexMeta, Setting
from serving.index.overfetch import Near, OverfetchIndex
from towers.bundle import Bundle
from towers.errors import BundleError

_native: Any = faiss  # what its types leave out

GRAPHS = ((16, 100), (32, 200))
"""M and efConstruction that tuning compares: neighbours of an item, twice as many on the ground level, picked from how many."""

_FACTORS = tuple(round(2 ** (step / 4), 3) for step in range(21))
"""efSearch for each item wanted: 1 to 32."""

_STEP_US = 0.25
"""Of each candidate of efSearch, times the root of M: 1.0 us at M = 16, 1.4 at 32, of 59k x 64."""


class Graph:
    """See `Finder`; efSearch is the number of candidates, all of which are rescored.

    Args:
        index: the graph over `layout`'s vectors, kept in half precision.
        layout: how they lie in it.
    """

    kind = "hnsw"
    nlist = 0
    factors = _FACTORS

    def __init__(self, index: Any, layout: Layout) -> None:
        self.layout = layout
        self._index: Any = index
        self._m = int(self._index.hnsw.nb_neighbors(1))
        self.factory = f"HNSW{self._m},SQfp16"

    def near(self, query_HW: NDArray[np.float32], fetch: int, nprobe: int) -> Near:
        """See `Finder.near`."""
        query_HW = np.ascontiguousarray(query_HW)
        near_HC, rows_HC = np.empty((len(query_HW), fetch), np.float32), np.empty((len(query_HW), fetch), np.int64)
        wide = _native.SearchParametersHNSW()
        wide.efSearch = fetch
        into = faiss.swig_ptr(near_HC), faiss.swig_ptr(rows_HC)
        self._index.search_c(len(query_HW), faiss.swig_ptr(query_HW), fetch, *into, wide)
        return Near(near_HC, rows_HC)

    def search_us(self, fetch: int, nprobe: int) -> float:
        """See `Finder.search_us`."""
        return fetch * _STEP_US * math.sqrt(self._m)

    def save(self, folder: Path) -> dict[str, Path]:
        """See `Finder.save`."""
        write_faiss(self._index, folder / FAISS_FILE)
        return {FAISS_FILE: folder / FAISS_FILE}


def build_hnsw(
    exact: ExactIndex, m: int, ef_construction: int, metric: str, seed: int, tuned_k: int, progress: Callable[[str], None]
) -> OverfetchIndex:
    """A graph over the items, of the narrowest search until it is tuned. Deterministic in `seed` on one thread; several link in any order.

    Args:
        exact: the catalogue.
        m, ef_construction: see `GRAPHS`.
        metric: one of `layout.METRICS`.
        seed: of the levels that items are drawn to.
        tuned_k: see `OverfetchIndex`.
        progress: told what happens next.
    """
    item_ID = exact.item_ID
    layout = Layout(item_ID.shape[1], metric, exact.largest_norm)
    measure = faiss.METRIC_L2 if layout.augmented else faiss.METRIC_INNER_PRODUCT
    index = _native.IndexHNSWSQ(layout.width, faiss.ScalarQuantizer.QT_fp16, m, measure)
    index.hnsw.efConstruction, index.hnsw.rng = ef_construction, _native.RandomGenerator(seed)
    progress(f"HNSW{m},SQfp16 {metric}, efConstruction {ef_construction}: {len(item_ID):,} vectors are linked")
    faiss.omp_set_num_threads(THREADS)
    for start in range(0, len(item_ID), BLOCK_ROWS):
        index.add(layout.items(item_ID[start : start + BLOCK_ROWS]))
    return OverfetchIndex(Graph(index, layout), exact, Setting(0, tuned_k), tuned_k)


def build_graphs(
    exact: ExactIndex, metrics: Sequence[str], seed: int, tuned_k: int, progress: Callable[[str], None]
) -> list[OverfetchIndex]:
    """What tuning compares."""
    return [build_hnsw(exact, *graph, metric, seed, tuned_k, progress) for metric in metrics for graph in GRAPHS]


def open_graph(bundle: Bundle, meta: IndexMeta) -> Graph:
    """The bundle's graph, mapped: shared with other processes and read when first visited.

    Raises:
        BundleError: it is not the graph that index.json describes.
    """
    path = bundle.path(FAISS_FILE)
    layout = Layout(meta.dim, meta.metric, meta.largest_norm)
    index = read_faiss(path, faiss.IO_FLAG_MMAP_IFC)
    if not isinstance(index, faiss.IndexHNSWSQ):
        raise BundleError(f"{path} holds a {type(index).__name__}, expected a graph; build it again: towers index")
    graph = Graph(index, layout)
    got = (index.ntotal, index.d, index.metric_type, graph.factory)
    expected = (meta.rows, layout.width, faiss.METRIC_L2 if layout.augmented else faiss.METRIC_INNER_PRODUCT, meta.factory)
    if got != expected:
        raise BundleError(f"{path}: rows, width, metric and M are {got}, index.json says {expected}; build it again: towers index")
    return graph
