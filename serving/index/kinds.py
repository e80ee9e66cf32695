"""Kinds of approximate index by name: what tuning compares, and how a bundle's is opened."""

from collections.abc import Callable, Sequence

from serving.index.build import build_ivf, candidates_for
from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.hnsw import build_graphs, open_graph
from serving.index.meta import IndexMeta
from serving.index.overfetch import Finder, OverfetchIndex
from serving.index.scann_index import build_leaves, open_leaves
from towers.bundle import Bundle

Approximate = FaissIndex | OverfetchIndex
Progress = Callable[[str], None]


def build_lists(exact: ExactIndex, metrics: Sequence[str], seed: int, tuned_k: int, progress: Progress) -> list[FaissIndex]:
    """Inverted files that tuning compares."""
    rows, dim = exact.item_ID.shape
    return [build_ivf(exact, candidate, seed, tuned_k, progress) for candidate in candidates_for(rows, dim, metrics)]


BUILDERS: dict[str, Callable[[ExactIndex, Sequence[str], int, int, Progress], Sequence[Approximate]]] = {
    "ivf": build_lists,
    "hnsw": build_graphs,
    "scann": build_leaves,
}
"""From the catalogue, the layouts that order items as the model does, a seed, the k of tuning and who is told what happens next."""

FINDERS: dict[str, Callable[[Bundle, IndexMeta], Finder]] = {"hnsw": open_graph, "scann": open_leaves}
"""Of kinds that know no filters."""

KINDS = ("exact", *BUILDERS)
