"""Replies of several lists or of the caller's own candidates, from the same parts as a single list."""

from dataclasses import replace
from functools import partial

import numpy as np

from serving.asked import Known
from serving.choosing import further
from serving.decoding import check_k, check_length
from serving.impressions import Listed
from serving.index.rowset import RowSet, both
from serving.messages import Clauses
from serving.page_messages import MOST_ITEMS, BatchRecommendations, BatchRequest, FilledShelf, Reranked, RerankRequest, Shelf
from serving.policy import Policy
from serving.retriever import Retriever
from serving.selector import POLICY, Candidates, Selection, select
from serving.signals import check_context
from serving.stepwise import Steps, finished
from towers.errors import RequestError

_NO_ROWS, _NO_SCORES = np.empty(0, np.int64), np.empty(0, np.float32)
_NOTHING = Selection(_NO_ROWS, _NO_SCORES, np.empty(0), Candidates(_NO_ROWS, _NO_SCORES), POLICY)


def answer_rows(
    retriever: Retriever, request: BatchRequest, known: Known | None = None, policy: Policy | None = None
) -> BatchRecommendations:
    """Fill the rows from first to last, each without what stands in those before.

    Args:
        known, policy: of lists that are computed again; see `Retriever.answer`.

    Raises:
        RequestError: names the row and field.
    """
    return finished(row_by_row(retriever, request, known, policy))


def row_by_row(
    retriever: Retriever, request: BatchRequest, known: Known | None = None, policy: Policy | None = None
) -> Steps[BatchRecommendations]:
    """The same in steps, one a row: a page of many takes long, and others are answered between them."""
    whole = retriever.item_filter.allowed(request.filter)
    allowed = [_checked(retriever, place, row, whole) for place, row in enumerate(request.rows)]
    wanted = sum(row.k for row in request.rows)
    policy = policy or retriever.chooser.policy(wanted, request.policy)
    _check_whole(retriever, wanted, policy)
    asked = retriever.ask(request, [row.context for row in request.rows], known)
    taken, shelves, told = asked.excluded, [], retriever.told(asked)
    parts = retriever.chooser.parts(policy, asked.signals, asked.known.now, wanted, asked.last)
    spent: list[Clauses] = []  # where the page's near-duplicates leave nothing any more, which takes a look at the whole catalogue to tell
    for place, row in enumerate(request.rows):
        yield
        if any(not clauses or clauses == row.filter for clauses in spent):
            chosen = _NOTHING
        else:
            own = replace(policy, k=row.k, seed=policy.seed + place)
            search = partial(retriever.candidates, asked, allowed=allowed[place], place=place)
            found = search(own.candidates, excluded=taken)
            chosen = select(found, own, parts, further(taken, lambda count, out: search(count, excluded=out)))  # noqa: B023 - called at once
            if chosen.shortage == POLICY and policy.dials is not None and not policy.dials.caps:
                spent.append(row.filter)
        taken = np.concatenate([taken, chosen.rows_k])
        items = retriever.items(chosen, asked, request.explain, place)
        shelves.append(FilledShelf(row.name, items, len(items), row.k, chosen.shortage or None))
        if known is None:
            listed = Listed(replace(policy, k=row.k), chosen, items)
            retriever.log("recommend_batch", request, asked, told["recommendation_id"], listed, place)
    return BatchRecommendations(**told, rows=shelves)


def answer_rerank(retriever: Retriever, request: RerankRequest, known: Known | None = None, policy: Policy | None = None) -> Reranked:
    """Score the candidates and order them; those that may not be shown, are excluded or are unknown are left out.

    Args:
        known, policy: of a list that is computed again; see `Retriever.answer`.

    Raises:
        RequestError: names the field.
    """
    check_length("items", request.items, retriever.limits)
    if request.k is not None:
        check_k(request.k, retriever.limits)
    k = len(request.items) if request.k is None else request.k
    if request.policy is not None:
        check_k(k, retriever.limits)  # an order made position by position costs more than one of scores
    if policy is None:
        policy = Policy(k) if request.policy is None else retriever.chooser.policy(k, request.policy)
    asked = retriever.ask(request, known=known)
    allowed = retriever.item_filter.allowed(request.filter, retriever.catalog.rows(request.items))
    found = retriever.candidates(asked, policy.candidates, allowed)
    chosen = retriever.chooser.choose(found, policy, asked, lambda count, out: retriever.candidates(asked, count, allowed, excluded=out))
    items = retriever.items(chosen, asked, request.explain)
    unknown = sorted({item for item in request.items if retriever.catalog.row(item) is None})
    told = retriever.told(asked)
    if known is None:
        retriever.log("rerank", request, asked, told["recommendation_id"], Listed(policy, chosen, items))
    shortage = chosen.shortage or None
    return Reranked(**told, items=items, returned=len(items), k=policy.k, unknown_items=unknown, shortage=shortage)


def _check_whole(retriever: Retriever, wanted: int, policy: Policy) -> None:
    """An order made position by position costs more than one of scores, and the more the more stands on the page already."""
    most, how = (MOST_ITEMS, "") if policy.dials is None else (retriever.limits.max_k, " where a policy orders them")
    if wanted > most:
        raise RequestError("rows", f"they want {wanted:,} items together, expected at most {most:,}{how}")


def _checked(retriever: Retriever, place: int, row: Shelf, whole: RowSet | None) -> RowSet | None:
    """Rows that may stand in a shelf, its settings checked."""
    try:
        check_k(row.k, retriever.limits)
        check_context(row.context, retriever.encoder.preprocessor, retriever.limits)
        retriever.encoder.preprocessor.encode("context", {name: [value] for name, value in row.context.items()}, 1)
        own = retriever.item_filter.allowed(row.filter) if row.filter else None
    except RequestError as error:
        raise RequestError(f"rows[{place}].{error.field}", error.message, error.status) from None
    if own is None or whole is None:
        return whole if own is None else own
    return both([whole, own])
