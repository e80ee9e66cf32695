"""Probe queries: what a bundle answers before it may answer people."""

import numpy as np

from serving.index.half import scan_of
from serving.messages import RecommendRequest
from serving.policy import Policy
from serving.retriever import Retriever
from serving.signals import FALLBACK
from towers.encoder import UserRow
from towers.errors import GateError

PROBES, EVENTS, K = 16, 5, 50
LEAST_OVERLAP = 0.5
"""Of the index with an exact scan, as a mean over the probes. The index was tuned to far more; this finds one of other vectors."""


def check_answers(retriever: Retriever) -> None:
    """Ask for people with a few items of the catalogue in their history; warms the towers and the index as well.

    Raises:
        GateError: a list is too short, holds an item twice, is out of order or not finite, no item is known to the model, or the index
            does not find what a scan of the vectors finds.
    """
    catalog, rng = retriever.stock.catalog, np.random.default_rng(0)
    what = f"bundle {retriever.bundle.folder.name} refused"
    barred = catalog.hidden.count + len(catalog.rows(retriever.chooser.blocked))
    wanted = min(K, retriever.limits.max_k, len(retriever.catalog) - barred)
    modes, rows = set(), []
    for _ in range(PROBES):
        history = catalog.ids(rng.integers(0, len(catalog), EVENTS))
        request = RecommendRequest(history=list(history), k=max(1, wanted), exclude_seen=False)
        retriever.answer(request)  # with the dials of the service, which may make a list short and put it in another order
        reply = retriever.answer(request, policy=Policy(request.k))
        modes.add(reply.mode)
        scores = np.array([item.score for item in reply.items])
        if not np.isfinite(scores).all() or np.any(np.diff(scores) > 0):
            raise GateError(f"{what}: scores of a probe are not finite or out of order; train or export it anew")
        if len(reply.items) < wanted or len({item.item_id for item in reply.items}) < len(reply.items):
            raise GateError(f"{what}: a probe got {len(reply.items)} items, expected {wanted} different ones; run `towers index` again")
        rows.append(UserRow(history_items=history))
    if modes == {FALLBACK}:
        raise GateError(f"{what}: its model knows no item of its own catalogue; vocabulary and catalogue are not of one export")
    vectors_BHD = retriever.encoder.users(rows).vectors_BHD
    exact = scan_of(retriever.stock.vectors_ID)
    found = [
        np.isin(retriever.stock.index.search(query_HD, wanted).rows, exact.search(query_HD, wanted).rows).mean() for query_HD in vectors_BHD
    ]
    if np.mean(found) < LEAST_OVERLAP:
        raise GateError(f"{what}: its index finds {np.mean(found):.0%} of what a scan finds, expected {LEAST_OVERLAP:.0%} at least")
