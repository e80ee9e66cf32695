"""What a ranking's lists show, measured for all queries of a form: exposure of the catalogue, and tastes. See training.exposure.

Legend: Q queries, k ranks, I items, G categories.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from towers.columns import CATEGORIES
from towers.errors import ConfigError
from training import exposure, ragged
from training.measure import Columns, Measured
from training.queries import Queries
from training.raw_codes import distinct

_BLOCK_QUERIES = 4096
PER_QUERY = ("average_popularity", "tail_share", "c_kl", "category_entropy", "ild")
OF_ALL = ("coverage", "gini", "providers_shown", "provider_lowest", "provider_highest")
"""Figures in results, by name: means over queries, and those of all lists together."""


@dataclass(frozen=True)
class Showing:
    """What lists are held against.

    Attributes:
        allowed_I: items that may be recommended.
        count_I: training events.
        provider_I: code of each item's provider, -1 = none; None = nobody asked.
        member_IG: categories of items; None where the data have none.
        taste_QG: shares of the categories in each query's history (events with a weight above 0).
    """

    allowed_I: NDArray[np.bool_]
    count_I: NDArray[np.int64]
    provider_I: NDArray[np.int64] | None = None
    member_IG: sp.csr_matrix | None = None
    taste_QG: NDArray[np.float64] | None = None

    @classmethod
    def of(cls, queries: Queries, allowed_I: NDArray[np.bool_], provider: str | None) -> "Showing":
        """What the lists of these queries are held against.

        Args:
            provider: column of the catalogue that says whose an item is.

        Raises:
            ConfigError: there is no such column, or an item has several of its values.
        """
        data = queries.data
        base = cls(allowed_I, data.train_counts(), None if provider is None else _providers(queries, provider))
        if CATEGORIES not in data.catalog.column_names or not data.catalog.column(CATEGORIES).null_count < data.n_items:
            return base
        member_IG = exposure.memberships(data.catalog.column(CATEGORIES))
        return replace(base, member_IG=member_IG, taste_QG=_tastes(queries, member_IG)) if member_IG.shape[1] else base

    def measure(self, rows_Qk: NDArray[np.int32], ks: Sequence[int], prefix: str) -> Measured:
        """All figures of ranked lists."""
        columns: Columns = {}
        whole: dict[str, float] = {}
        tail_I = exposure.tail(self.count_I, self.allowed_I)
        unit_IG = None if self.member_IG is None else exposure.units(self.member_IG)
        for k in ks:
            columns[f"{prefix}/average_popularity@{k}"] = exposure.average_popularity(rows_Qk, self.count_I, k)
            columns[f"{prefix}/tail_share@{k}"] = exposure.tail_share(rows_Qk, tail_I, k)
            whole[f"{prefix}/gini@{k}"] = exposure.gini(rows_Qk, self.allowed_I, k)
            if self.member_IG is not None and self.taste_QG is not None:
                shown_QG = exposure.list_shares(rows_Qk, self.member_IG, k)
                columns[f"{prefix}/c_kl@{k}"] = exposure.miscalibration(self.taste_QG, shown_QG)
                columns[f"{prefix}/category_entropy@{k}"] = exposure.category_entropy(shown_QG)
                columns[f"{prefix}/ild@{k}"] = exposure.ild(rows_Qk, unit_IG, k)
            if self.provider_I is not None:
                share_P = exposure.provider_exposure(rows_Qk, self.provider_I, self.allowed_I, k)
                whole[f"{prefix}/providers_shown@{k}"] = float(np.mean(share_P[~np.isnan(share_P)] > 0))
                whole[f"{prefix}/provider_lowest@{k}"] = float(np.nanmin(share_P))
                whole[f"{prefix}/provider_highest@{k}"] = float(np.nanmax(share_P))
        return Measured(columns, whole)


def _providers(queries: Queries, column: str) -> NDArray[np.int64]:
    catalog = queries.data.catalog
    if column not in catalog.column_names:
        raise ConfigError(f"evaluate.provider: the catalogue has no column {column!r}; there are {', '.join(catalog.column_names)}")
    values = catalog.column(column)
    if not (str(values.type).endswith("string") or str(values.type).startswith("int")):
        raise ConfigError(f"evaluate.provider: column {column!r} is of type {values.type}, expected one text or whole number an item")
    place_I, unique = distinct(values)
    if not len(unique):
        raise ConfigError(f"evaluate.provider: no item has a {column!r}")
    return np.where(place_I == len(unique), -1, place_I)


def _tastes(queries: Queries, member_IG: sp.csr_matrix) -> NDArray[np.float64]:
    data, parts = queries.data, []
    for start in range(0, len(queries), _BLOCK_QUERIES):
        offsets, rows = queries.history.take(slice(start, start + _BLOCK_QUERIES)).rows()
        kept = ragged.keep((offsets, data.item[rows]), np.asarray(data.weight[rows]) > 0)
        parts.append(exposure.shares(kept, member_IG))
        data.release()
    return np.concatenate(parts)
