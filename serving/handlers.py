"""What each route does: a call in, a reply out. The work is the retriever's."""

import re
from datetime import UTC, datetime
from urllib.parse import parse_qsl

import msgspec

from serving.calls import Call, Handler, Reply
from serving.decoding import decode
from serving.engine import Engine
from serving.messages import EventsRequest, ItemRequest, RecommendRequest
from serving.metrics import Metrics
from serving.openapi import document
from serving.page import start_page
from serving.page_messages import BatchRequest, RerankRequest
from serving.people_calls import PeopleCalls
from serving.rights import Rights
from serving.shelves import answer_rerank, row_by_row
from towers.errors import RequestError
from towers.preprocess import Preprocessor


class Handlers:
    """The handlers over whichever retriever serves at the moment.

    Args:
        engine: holds the retriever that answers the next call.
        metrics: what `/metrics` shows.
        rights: what acts on people's rows.
    """

    def __init__(self, engine: Engine, metrics: Metrics, rights: Rights | None = None) -> None:
        self._engine = engine
        self._metrics = metrics
        self._people = PeopleCalls(engine, rights)
        self._documented: tuple[Preprocessor, Reply] | None = None
        shown = start_page()
        headers = tuple((name.encode(), value.encode()) for name, value in shown.headers.items())
        self._page = Reply(shown.text.encode(), b"text/html; charset=utf-8", headers)

    def by_name(self) -> dict[str, Handler]:
        """The handler of each of `serving.routes`."""
        own = (
            self.recommend,
            self.recommend_batch,
            self.rerank,
            self.events,
            self.put_item,
            self.delete_item,
            self.similar,
            self.live,
            self.ready,
            self.metrics,
            self.openapi,
            self.page,
        )
        people = self._people.put_consent, self._people.get_consent, self._people.get_user, self._people.delete_user
        return {handler.__name__: handler for handler in (*own, *people)}

    def recommend(self, call: Call) -> object:
        retriever = self._engine.retriever
        return retriever.answer(decode(call.body, RecommendRequest, retriever.limits.max_history))

    def recommend_batch(self, call: Call) -> object:
        retriever = self._engine.retriever
        return row_by_row(retriever, decode(call.body, BatchRequest, retriever.limits.max_history))

    def rerank(self, call: Call) -> object:
        retriever = self._engine.retriever
        return answer_rerank(retriever, decode(call.body, RerankRequest, retriever.limits.max_history))

    def events(self, call: Call) -> object:
        retriever = self._engine.retriever
        return retriever.add(decode(call.body, EventsRequest, retriever.limits.max_events))

    def put_item(self, call: Call) -> object:
        return self._engine.put_item(call.params["id"], decode(call.body, ItemRequest).attributes)

    def delete_item(self, call: Call) -> object:
        return self._engine.delete_item(call.params["id"])

    def similar(self, call: Call) -> object:
        retriever = self._engine.retriever
        pairs = parse_qsl(call.query, keep_blank_values=True)
        parameters = dict(pairs)
        unknown = next((name for name in parameters if name != "k"), None)
        if unknown is not None:
            raise RequestError(unknown[:60], "unknown query parameter; expected k")
        if len(pairs) > 1:
            raise RequestError("k", f"got it {len(pairs)} times, expected it once")
        given = parameters.get("k", "20")
        if not re.fullmatch(r"-?[0-9]{1,18}", given):
            raise RequestError("k", f"got {given[:60]!r}, expected a whole number from 1 to {retriever.limits.max_k}")
        return retriever.similar_items(call.params["id"], int(given))

    def live(self, call: Call) -> object:
        return {"status": "live"}

    def ready(self, call: Call) -> object:
        return {"status": "ready", **self._engine.health()}

    def metrics(self, call: Call) -> Reply:
        retriever = self._engine.retriever
        made = datetime.fromisoformat(str(retriever.bundle.manifest["created"]))
        gauges = {"towers_index_age_seconds": (datetime.now(UTC) - made).total_seconds(), "towers_items": float(len(retriever.catalog))}
        info = {"model_version": retriever.model_version, "index_version": retriever.bundle.version}
        return Reply(self._metrics.text(gauges, info).encode(), b"text/plain; version=0.0.4; charset=utf-8")

    def openapi(self, call: Call) -> Reply:
        now = self._engine.retriever
        fitted, documented = now.encoder.preprocessor, self._documented
        if documented is None or documented[0] is not fitted:  # a new bundle may declare other features
            content = msgspec.json.encode(document(now.limits, fitted, now.chooser.settings.most))
            self._documented = documented = fitted, Reply(content, b"application/json")
        return documented[1]

    def page(self, call: Call) -> Reply:
        return self._page
