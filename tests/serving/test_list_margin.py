"""How many lists a filter needs: a margin found on some users holds for others, whatever the filter leaves."""

import numpy as np
import pytest
from numpy.typing import NDArray

from serving.index.build import Candidate, build_ivf
from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.interface import SearchResult
from serving.index.margin import list_margin
from serving.index.meta import Setting
from serving.index.rowset import RowSet

ITEMS, DIM, K = 30_000, 16, 20
FLOOR = 0.95


def drawn() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Items by topic, and users who like two topics: they lie between them."""
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((150, DIM))
    items = topics[rng.integers(150, size=ITEMS)] + 0.6 * rng.standard_normal((ITEMS, DIM))
    users = topics[rng.integers(150, size=(260, 2))].mean(1) + 0.2 * rng.standard_normal((260, DIM))
    return items.astype(np.float32), users.astype(np.float32)


ITEM_ID, QUERY_QD = drawn()
TUNE_QD, TEST_QD = QUERY_QD[:200], QUERY_QD[200:]
EXACT = ExactIndex(ITEM_ID)


class Scans(ExactIndex):
    """Counts them."""

    count = 0

    def scan(self, query_HD: NDArray[np.float32], k: int, allowed: RowSet | None, banned: NDArray[np.integer]) -> SearchResult:
        self.count += 1
        return super().scan(query_HD, k, allowed, banned)


SCANS = Scans(ITEM_ID)


@pytest.fixture(scope="module")
def index() -> FaissIndex:
    built = build_ivf(SCANS, Candidate(300, "PQ16x4fsr", "inner_product"), 0, K, lambda _: None)
    built.setting = Setting(6, 5 * K)
    built.margin = list_margin(built, EXACT, TUNE_QD, K, FLOOR)
    return built


def allowed_for(kind: str, share: float, q: int) -> RowSet:
    rng, count = np.random.default_rng(q), int(share * ITEMS)
    if kind == "at random":
        return RowSet.of_rows(ITEMS, rng.permutation(ITEMS)[:count])
    near = {"near another user": TEST_QD[q - 1], "near an item": ITEM_ID[rng.integers(ITEMS)], "far": -TEST_QD[q]}[kind]
    return RowSet.of_rows(ITEMS, np.argsort(ITEM_ID @ near)[-count:])


@pytest.mark.parametrize("kind", ["at random", "near another user", "near an item", "far"])
@pytest.mark.parametrize("share", [0.5, 0.1])
def test_recall_of_other_users_under_any_filter(index: FaissIndex, kind: str, share: float) -> None:
    hits = 0
    for q, query_D in enumerate(TEST_QD):
        allowed = allowed_for(kind, share, q)
        found, true = index.search(query_D, K, allowed), EXACT.search(query_D, K, allowed)
        assert len(found.rows) == K and allowed.has(found.rows).all()
        hits += int((found.scores >= true.scores[-1]).sum())
    assert hits >= FLOOR * K * len(TEST_QD)


def test_lists_answer_a_filter_at_random(index: FaissIndex) -> None:
    """Not a scan of what it leaves, which would be exact and long; without a margin there is no other way."""
    before, margin = SCANS.count, index.margin
    allowed = [allowed_for("at random", 0.3, q) for q in range(len(TEST_QD))]
    for query_D, one in zip(TEST_QD, allowed, strict=True):
        index.search(query_D, K, one)
    assert SCANS.count - before <= len(TEST_QD) // 10
    index.margin = None
    try:
        for query_D, one in zip(TEST_QD, allowed, strict=True):
            assert index.search(query_D, K, one).rows.tolist() == EXACT.search(query_D, K, one).rows.tolist()
    finally:
        index.margin = margin


def test_it_is_what_lists_of_the_best_items_lack(index: FaissIndex) -> None:
    """By hand: the share of the best items whose list is within the margin, of those a filter leaves that another user likes."""
    list_I = index.list_I
    assert index.margin is not None
    held = []
    for q, query_D in enumerate(TUNE_QD):
        left = np.argsort(ITEM_ID @ TUNE_QD[q - 1])[-ITEMS // 10 :]
        best = left[np.argsort(ITEM_ID[left] @ query_D)[-K:]]
        reach = (ITEM_ID[best] @ query_D).min() - index.margin * np.linalg.norm(query_D)
        held.append(index.centres_LD[list_I[best]] @ query_D >= reach)
    assert np.mean(held) >= (1 + FLOOR) / 2 - 0.002


def test_it_is_of_queries_of_norm_one(index: FaissIndex) -> None:
    assert index.margin is not None
    assert list_margin(index, EXACT, TUNE_QD * np.float32(7), K, FLOOR) == pytest.approx(index.margin, rel=1e-4)
    assert list_margin(index, EXACT, TUNE_QD, K, 0.99) > index.margin


def test_a_single_user_and_few_items() -> None:
    few = ExactIndex(ITEM_ID[:120])
    index = build_ivf(few, Candidate(3, "SQfp16", "l2_augmented"), 0, K, lambda _: None)
    assert np.isfinite(list_margin(index, few, TUNE_QD[:1], 500, FLOOR))
    assert np.isfinite(list_margin(index, few, np.zeros((2, DIM), np.float32), K, FLOOR))
