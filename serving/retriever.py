"""The recipe of a recommendation, top to bottom. The HTTP service calls this and nothing else; so can any Python program."""

import copy
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.asked import Asked, Known, look_up, reason_of
from serving.attribute_files import open_attributes
from serving.bounds import Limits
from serving.catalog_files import open_catalog
from serving.choosing import Chooser
from serving.decoding import check_k, check_length, check_limits, from_python
from serving.explain import Explainer
from serving.fallback import MOST_POPULAR, most_popular
from serving.filters import ItemFilter
from serving.impressions import Listed, Outbox, Shown, Versions
from serving.index.half import served_vectors
from serving.index.interface import VectorIndex
from serving.index.rowset import RowSet
from serving.index.stored import open_index
from serving.intake import add_events
from serving.live_catalog import AnyCatalog, AnyFilter, Stock
from serving.logs import REQUEST_ID
from serving.messages import (  # fmt: skip
    Asker,
    EventsAdded,
    EventsRequest,
    Fallback,
    Item,
    Moment,
    Recommendations,
    RecommendRequest,
    SimilarItems,
)  # fmt: skip
from serving.metrics import Metrics
from serving.policy import Policy, SelectorSettings
from serving.profiles import Profiles
from serving.runtimes import open_encoder
from serving.selector import Candidates, Selection
from serving.signals import FALLBACK, read_signals
from serving.steering import steer
from towers.bundle import Bundle
from towers.encoder import Encoder
from towers.errors import RequestError
from towers.phrases import PHRASES


class Retriever:
    """Recommendations from one bundle.

    Args:
        bundle: verified.
        encoder: raw rows to vectors.
        index: over the bundle's item vectors.
        profiles: what is stored of users, shared with other retrievers; None = nothing but events added to this one.
        limits: of one request.

    Attributes:
        metrics: what is counted; a service puts its own here.
        model_version: of the bundle that brought the model.
    """

    def __init__(
        self,
        bundle: Bundle,
        encoder: Encoder,
        index: VectorIndex,
        profiles: Profiles | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.bundle = bundle
        self.encoder = encoder
        vectors_ID = served_vectors(bundle)
        size = len(vectors_ID)
        catalog = open_catalog(bundle, encoder.preprocessor, size)
        self.stock = Stock(bundle, vectors_ID, open_attributes(bundle, size), catalog, index)
        self.catalog: AnyCatalog = catalog
        self.index = index
        self.explainer = Explainer(encoder, bundle.manifest.get(PHRASES, {}))
        self.item_filter: AnyFilter = ItemFilter(self.stock.attributes, catalog.hidden, size)
        self._came_ND = np.empty((0, vectors_ID.shape[1]), np.float32)
        self.steer(SelectorSettings())
        self.limits = limits or Limits()
        self.profiles = profiles or Profiles.open(None, None)
        self.profiles.teach(encoder.preprocessor, catalog.vocabulary)
        self.metrics = Metrics(())
        self.outbox: Outbox | None = None
        self.item_changes = 0  # generation of the last that the catalogue knows
        # the version of the bundle that brought the model; an index built later has a version of its own
        self.model_version = str(bundle.manifest.get("model_version", bundle.version))

    @classmethod
    def open(
        cls,
        bundle: Path | str,
        history: Path | str | None = None,
        key_file: Path | str | None = None,
        limits: Limits | None = None,
        runtime: str = "auto",
        device: str = "cpu",
    ) -> "Retriever":
        """Open a bundle folder; torch is not needed, unless it is asked for.

        Args:
            history: Parquet file of user histories; None = no user is known but by `add_events`.
            key_file: secret that user ids are keyed with; None = $TOWERS_KEY_FILE or ~/.towers/user_key. Read only with `history`.
            runtime, device: what runs the towers; see `open_encoder`.

        Raises:
            BundleError: the bundle is damaged or incomplete.
            DataError, ConfigError: the histories or the secret cannot be read, or do not belong together.
        """
        return cls.load(Bundle.open(bundle), Profiles.open(history, None if key_file is None else str(key_file)), limits, runtime, device)

    @classmethod
    def load(
        cls,
        bundle: Bundle,
        profiles: Profiles | None = None,
        limits: Limits | None = None,
        runtime: str = "auto",
        device: str = "cpu",
    ) -> "Retriever":
        """From a verified bundle and what is stored of users; raises BundleError."""
        return cls(bundle, open_encoder(bundle, runtime, device), open_index(bundle), profiles, limits)

    def recommend(
        self,
        user_id: str | None = None,
        history: Sequence[str | Mapping[str, Any]] = (),
        context: Mapping[str, Any] | None = None,
        preferences: Sequence[str] | Mapping[str, Sequence[str]] = (),
        k: int = 20,
        exclude: Sequence[str] = (),
        exclude_seen: bool = True,
        filter: Sequence[Mapping[str, Any]] = (),
        less_like: Sequence[str] = (),
        explain: bool = False,
        candidate_items: Sequence[str] | None = None,
        policy: Mapping[str, Any] | None = None,
        now: Moment | None = None,
        personalize: bool = True,
    ) -> Recommendations:
        """The k items for one person and moment; arguments as in `messages.RecommendRequest`.

        Raises:
            RequestError: names the argument at fault.
        """
        fields = {name: value for name, value in locals().items() if name != "self"}
        reply = self.answer(from_python({**fields, "context": context or {}}, RecommendRequest))
        return msgspec.structs.replace(reply, items=list(reply.items))  # plain objects for programs, JSON as it lies for the service

    def answer(self, request: RecommendRequest, known: Known | None = None, policy: Policy | None = None) -> Recommendations:
        """The same for a decoded request; see `ask` for `known`, and `policy` belongs to it: how that list was made."""
        check_k(request.k, self.limits)
        among = None
        if request.candidate_items is not None:
            check_length("candidate_items", request.candidate_items, self.limits)
            among = self.catalog.rows(request.candidate_items)
        asked = self.ask(request, known=known)
        started = time.perf_counter()
        policy = policy or self.chooser.policy(request.k, request.policy)
        allowed = self.item_filter.allowed(request.filter, among)
        found = self.candidates(asked, policy.candidates, allowed)
        started = self.metrics.lap("search", started)
        chosen = self.chooser.choose(found, policy, asked, lambda count, out: self.candidates(asked, count, allowed, excluded=out))
        started = self.metrics.lap("select", started)
        items = self.items(chosen, asked, request.explain)
        reply = Recommendations(**self.told(asked), items=items, returned=len(items), k=request.k, shortage=chosen.shortage or None)
        if known is None:
            self.log("recommend", request, asked, reply.recommendation_id, Listed(policy, chosen, items))
        self.metrics.lap("reply", started)
        return reply

    def ask(self, request: Asker, contexts: Sequence[Mapping[str, Any]] = ({},), known: Known | None = None) -> Asked:
        """Who asks, as vectors and exclusions.

        Args:
            contexts: one for each list wanted, over the request's own.
            known: who asked and when, of a list that is computed again; None = as the request says, and now.

        Raises:
            RequestError: names the field.
        """
        started = time.perf_counter()
        check_limits(request, self.limits)
        known, stored, profile = look_up(request, self.profiles, self.encoder.preprocessor.schema, known)
        fitted, length = self.encoder.preprocessor, self.encoder.length
        signals = read_signals(request, stored, self.profiles.stores_users, fitted, length, known.now, self.limits)
        seen = signals.seen if request.exclude_seen else ()
        excluded = self.catalog.rows(request.exclude, request.less_like, seen, self.chooser.blocked)
        started = self.metrics.lap("state", started)
        rows = [signals.row._replace(context={**request.context, **context}) if context else signals.row for context in contexts]
        batch = self.encoder.user_batch(rows)  # under a fallback too: a value that does not fit is told in any case
        found = None if signals.mode == FALLBACK else self.encoder.runtime.user(batch, request.explain)
        vectors_BHD, parts = (None, None) if found is None else (found.vectors_BHD, found.parts)
        reason = reason_of(signals, profile)
        asked = Asked(signals.mode, reason, signals.unknown_items, profile, known, excluded, vectors_BHD, signals, rows, parts)
        if request.less_like:
            asked = steer(asked, self.stock.vectors(self.catalog.rows(request.less_like), self._came_ND), self.index)
        self.metrics.lap("encode", started)
        self.metrics.recommended(signals.mode, reason)
        return asked

    def candidates(
        self, asked: Asked, count: int, allowed: RowSet | None, place: int = 0, excluded: NDArray[np.int64] | None = None
    ) -> Candidates:
        """The best items that may be shown.

        Args:
            allowed: of `item_filter`.
            place: which of the asked contexts.
            excluded: rows left out; None = those that the request excludes.
        """
        left_out = asked.excluded if excluded is None else excluded
        if asked.vectors_BHD is None:
            return most_popular(self.catalog, count, allowed, left_out, asked.last)
        found = self.index.search(asked.vectors_BHD[place], count, allowed, left_out)
        return Candidates(found.rows, found.scores)

    def told(self, asked: Asked) -> dict[str, Any]:
        """What every reply says of itself."""
        return {
            "recommendation_id": os.urandom(16).hex(),
            "model_version": self.model_version,
            "index_version": self.bundle.version,
            "mode": asked.mode,
            "fallback": Fallback(MOST_POPULAR, asked.reason) if asked.mode == FALLBACK else None,
            "unknown_history_items": asked.unknown_items,
            "profile": asked.profile,
        }

    def versions(self) -> Versions:
        """What makes its lists now."""
        return Versions(self.model_version, self.bundle.version, self.item_changes, self.chooser.blocked_digest)

    def add_events(self, events: Sequence[Mapping[str, Any]]) -> EventsAdded:
        """Store what people did, as in `messages.Event`; it counts from the next list on.

        Raises:
            RequestError: names the field at fault; nothing was stored.
        """
        return self.add(from_python({"events": events}, EventsRequest))

    def add(self, request: EventsRequest) -> EventsAdded:
        """The same for a decoded request."""
        return add_events(request, self.profiles, self.encoder.preprocessor, self.limits)

    def similar_items(self, item_id: str, k: int = 20) -> SimilarItems:
        """The k items whose vectors score highest with this item's, itself left out.

        Raises:
            RequestError: 404 for an unknown item, 422 for a k out of bounds.
        """
        check_k(k, self.limits)
        row = self.catalog.row(item_id)
        if row is None:
            raise RequestError("id", f"no item {item_id[:60]!r} in the catalogue", 404)
        excluded = np.append(self.catalog.rows(self.chooser.blocked), row)
        found = self.index.search(self.stock.vectors(np.array([row]), self._came_ND), k, self.item_filter.allowed(), excluded)
        items = self.catalog.items(found.rows, found.scores)
        return SimilarItems(item_id, self.model_version, self.bundle.version, items, len(items), k)

    def steer(self, settings: SelectorSettings) -> None:
        """Say how lists are made from now on; raises ConfigError, naming a setting out of bounds or an attribute that items lack."""
        self.chooser = Chooser(settings, self.stock.traits, self.catalog, self.encoder.preprocessor.schema)

    def with_items(self, gone: Sequence[str], came: pa.Table, came_ND: NDArray[np.float32], generation: int) -> "Retriever":
        """A retriever of the same bundle from which items went and to which others came, by change `generation`; see `Stock`."""
        changed, schema = copy.copy(self), self.encoder.preprocessor.schema
        changed.catalog, changed.item_filter, changed.index = self.stock.with_changes(gone, came, came_ND, schema)
        changed._came_ND, changed.item_changes = came_ND, generation
        changed.chooser = self.chooser.over(self.stock.traits_with(came, came_ND, schema), changed.catalog)
        return changed

    def inherit(self, other: "Retriever") -> None:
        """Take over what belongs to the service and neither to a bundle nor to the users as they are known with it."""
        self.limits, self.metrics, self.outbox = other.limits, other.metrics, other.outbox

    def items(self, chosen: Selection, asked: Asked, explain: bool, place: int = 0) -> Sequence[Item]:
        """What the reply says of each item, and where somebody wants to know, why."""
        if not explain:
            return self.catalog.items(chosen.rows_k, chosen.scores_k)
        return self.explainer.explained(asked, chosen, self.stock.vectors(chosen.rows_k, self._came_ND), self.catalog, place)

    def log(self, kind: str, request: Asker, asked: Asked, recommendation_id: str, listed: Listed, row: int = 0) -> None:
        """Note what was shown, where impressions are kept."""
        if self.outbox is not None:
            at, made_by = time.time_ns() // 1000, self.versions()
            self.outbox.add(Shown(kind, row, recommendation_id, request, asked, made_by, listed, at, REQUEST_ID.get(), self.catalog))
