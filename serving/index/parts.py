"""Indexes of their own for declared values that filters name often: a category's items are then searched as a small catalogue is."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from serving.attributes import Attributes, ValueLists
from serving.config import IndexConfig
from serving.index.build import CODE_WORDS, Candidate, build_ivf, lists_for
from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.layout import Layout
from serving.index.meta import PartMeta
from serving.index.rowset import RowSet
from serving.index.tune import Judge, tune
from towers.errors import ConfigError, GateError

_MOST = 256
_QUERIES = 500
_MARGIN = 0.01
"""The fastest setting above the floor is one that the judges flatter: of 100,000 items, one of 0.95 had 0.943 for other users."""


def build_parts(
    exact: ExactIndex,
    served: ExactIndex,
    values: Sequence[RowSet],
    query_QD: NDArray[np.float32],
    config: IndexConfig,
    seed: int,
    progress: Callable[[str], None],
) -> list[tuple[PartMeta, FaissIndex]]:
    """An index of short codes for each of `values_with_parts`, where it reaches the floor.

    Args:
        served: the vectors that answer, which may be `exact` rounded.
    """
    width = Layout(exact.item_ID.shape[1], "inner_product", 1.0).width
    built: list[tuple[PartMeta, FaissIndex]] = []
    floor = min(1.0, config.recall_floor + _MARGIN)
    for among in values:
        candidate = Candidate(max(1, lists_for(among.count) // 2), f"PQ{width}x4fsr", "inner_product")
        judge = Judge(exact, query_QD[:_QUERIES], config.k, among)
        try:
            tuned = tune(judge, [build_ivf(served, candidate, seed, judge.k, lambda _: None, among)], floor)
        except GateError:
            progress(f"{among.key}: no index of its own reaches index.recall_floor by a safe margin; filters on it search the whole")
            continue
        stats, file = tuned.index.stats(), f"part-{len(built)}.faiss"
        part = PartMeta(among.key, file, stats.factory, stats.rows, stats.nlist, stats.nprobe, stats.candidates, tuned.point.recall)
        built.append((part, tuned.index))
    progress(f"{len(built)} declared values have an index of their own")
    return built


def values_with_parts(attributes: Attributes, config: IndexConfig) -> list[RowSet]:
    """Rows of each value of `index.parts` that has `index.part_items` items, of the 256 largest.

    Raises:
        ConfigError: index.parts names an attribute that is none, or has no values.
    """
    chosen: list[RowSet] = []
    for name in config.parts:
        lists = attributes.get(name)
        if not isinstance(lists, ValueLists):
            known = ", ".join(name for name, one in attributes.items() if isinstance(one, ValueLists)) or "none"
            raise ConfigError(f"index.parts: got {name!r}, expected attributes that have values: {known}")
        counts_V = np.diff(lists.offsets_V)
        chosen.extend(lists.rows_of(v) for v in np.flatnonzero(counts_V >= max(config.part_items, CODE_WORDS)).tolist())
    return sorted(chosen, key=lambda among: -among.count)[:_MOST]
