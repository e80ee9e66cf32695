"""One form of an evaluation: which queries, which masks, which views; and what ranks them: a trained run, or a baseline's scores.

Legend: Q queries, H heads, D dimensions, I items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from towers.dot_products import DotProducts, dot_products
from towers.runtime import TorchRuntime, load_runtime
from towers.topk import Fill
from training.device import choose_half
from training.groups import Grouping
from training.interactions import Interactions
from training.measure import SLICE_METRICS, Columns, Measured, measure, measure_slice, only
from training.queries import Queries
from training.rank_queries import encode_items, encode_users, rank_queries
from training.rivals import as_asked_of
from training.showing import Showing
from training.slices import Slice, all_slices, warm_alone
from training.views import View

FOR_ALL = ("most_popular", "recent_popular")
"""Baselines that read nothing of the user: under a view their lists stay what they are."""


@dataclass(frozen=True)
class Form:
    """One way of treating seen items, and the queries that it leaves.

    Attributes:
        prefix: of the metrics' names: `test`, or `test/masked` and `test/unmasked` where both are reported.
    """

    prefix: str
    masked: bool
    queries: Queries


@dataclass(frozen=True)
class Asking:
    """What is asked of every ranking of a form.

    Attributes:
        ks: cut-offs.
        allowed_I: items that may be recommended.
        views: the same queries seen with less.
        slices: measure parts of the queries too, of models.
        showing: what the lists show is measured against it; None = it is not.
        groupings: people by whose groups recall and NDCG are measured too.
    """

    form: Form
    ks: Sequence[int]
    allowed_I: NDArray[np.bool_]
    views: Sequence[View]
    slices: bool
    showing: Showing | None = None
    groupings: Sequence[Grouping] = ()

    def measure(self, fill: Fill, name: str) -> Measured:
        """A baseline; where it is the same for all users, for the queries of each view too."""
        found = self.lists(fill, f"rank: {name}", whole=True)
        part: Columns = {}
        for view in self.views if name in FOR_ALL else ():
            part |= only(found, view.counts(self.form.queries), self.form.prefix, view.name)
        return found | Measured(part, {})

    def lists(
        self, scores: Fill | DotProducts, label: str, parts: bool = False, device: torch.device | str = "cpu", whole: bool = False
    ) -> Measured:
        """Rank and measure; `whole`: by group and what is shown too, `parts`: by slice too."""
        form, counts_I = self.form, self.form.queries.data.train_counts()
        made_Qk = self._rank(scores, self.allowed_I, label, device)
        slices: list[Slice] = all_slices(form.queries, counts_I) if parts else []
        cold_I = self.allowed_I & (counts_I == 0) if parts else None
        found = measure(made_Qk, form.queries, self.ks, form.prefix, int(self.allowed_I.sum()), slices, cold_I)
        if cold_I is not None and cold_I.any() and (alone := warm_alone(slices)):
            warm_Qk = self._rank(scores, self.allowed_I & ~cold_I, f"{label}, among items of training", device)
            found |= Measured(measure_slice(warm_Qk, form.queries, self.ks, form.prefix, alone), {})
        if whole and self.showing is not None:
            found |= self.showing.measure(made_Qk, self.ks, form.prefix)
        for grouping in self.groupings if whole else ():
            metrics = [f"{metric}@{k}" for metric in SLICE_METRICS for k in self.ks]
            found |= Measured(grouping.columns(found, form.prefix, metrics), {})
        return found

    def _rank(self, scores: Fill | DotProducts, allowed_I: NDArray[np.bool_], label: str, device: torch.device | str) -> NDArray[np.int32]:
        form, k = self.form, max(self.ks)
        return rank_queries(scores, form.queries, k, masked=form.masked, allowed_I=allowed_I, label=label, device=device).rows_Qk


@dataclass(frozen=True)
class Ranked:
    """A trained run that ranks.

    Attributes:
        item_ID: vectors of the whole catalogue, on the device.
    """

    runtime: TorchRuntime
    data: Interactions
    item_ID: torch.Tensor

    @classmethod
    def open(cls, run_dir: Path, data: Interactions, device: torch.device) -> "Ranked":
        """Load run_dir's model and encode the catalogue."""
        runtime = load_runtime(run_dir / "model", data.preprocessor, device)
        return cls(runtime, data, torch.as_tensor(encode_items(runtime, data), device=device))

    @property
    def length(self) -> int:
        """History events that the user tower takes."""
        return self.runtime.model.config.history.length

    def measure(self, asking: Asking, name: str) -> Measured:
        """Its lists, and those of each view."""
        form = asking.form
        products = self._products(form.queries, "encode users")
        found = asking.lists(products, f"rank: {name}", asking.slices, self.runtime.device, whole=True)
        part: Columns = {}
        for view in asking.views:
            products = self._products(form.queries, f"encode users: {view.name}", view)
            seen = asking.lists(products, f"rank: {name}, {view.name}", device=self.runtime.device)
            part |= only(seen, view.counts(form.queries), form.prefix, view.name)
        return found | Measured(part, {})

    def _products(self, queries: Queries, label: str, view: View | None = None) -> DotProducts:
        users_QHD = encode_users(self.runtime, as_asked_of(queries, self.data), self.length, label, view)
        return dot_products(users_QHD, self.item_ID, choose_half("auto", self.runtime.device)[0])
