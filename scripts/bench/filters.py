"""What a filter costs, and what it finds: the bundle's own index and attributes, from all items down to one in ten thousand.

    python scripts/bench/filters.py [--quick]

World: see vector_world.py, 64 dimensions, recall floor 0.95, top 100. `share`: that share of the items may be returned, drawn at random;
for recall also, as `far`, as many of those that score lowest for the query, which no list near it holds. Each search is what a request
does: clauses to rows (`ItemFilter.allowed`), then `VectorIndex.search` of the index as it is opened from the bundle. Ad hoc: a range of
`created_at`, or below one in a thousand the ids of `candidate_items`; `category`: one declared category, about a tenth of the items, with
the index of its own. Costs are processor time of one thread, forms in turns; recall is against the exact top of what is allowed, the lower
of both draws; `returned_k` is the worst of returned / min(k, allowed).
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from clocks import cpu_rounds, ratio
from report import finish, say
from vector_world import indexed, two_towers

from serving.attribute_files import open_attributes
from serving.filters import ItemFilter
from serving.index.exact import ExactIndex
from serving.index.interface import VectorIndex
from serving.index.rowset import RowSet
from serving.index.stored import open_index
from serving.messages import Clause

K, DIM = 100, 64
SHARES = {"1": 1.0, "0.1": 0.1, "0.01": 0.01, "0.001": 0.001, "0.0001": 0.0001}
SIZES = {"100k": 100_000, "1m": 1_000_000}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 items in place of both sizes, and fewer rounds")
    quick = parser.parse_args().quick
    faiss.omp_set_num_threads(1)
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    rows = [("items", "allowed", "cost / unfiltered", "us", "recall@100", "far from the query", "returned")]
    for name, items in {"20k": 20_000}.items() if quick else SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            rows += measure(name, items, Path(folder), 3 if quick else 9, ratios, figures)
    finish("filters", rows, ratios, figures)


def measure(name: str, items: int, folder: Path, rounds: int, ratios: dict[str, float], figures: dict[str, float]) -> list[tuple[str, ...]]:
    """All shares at one size."""
    world = two_towers(items, DIM)
    bundle = indexed(folder, world, 0.95, parts=True, queries=500)
    index, exact = open_index(bundle), ExactIndex(bundle.item_vectors())
    items_filter = ItemFilter(open_attributes(bundle, items), RowSet.of_rows(items, np.empty(0, np.int64)), items)
    query_QD = world.test_QD[:100]
    rng = np.random.default_rng(1)
    asks: dict[str, Callable[[], RowSet | None]] = {"1": items_filter.allowed}
    for share, part in list(SHARES.items())[1:]:
        asks[share] = ask_ad_hoc(items_filter, items, part, rng)
    asks["category"] = lambda: items_filter.allowed([Clause("categories", ["c3"])])
    forms = {share: timed(index, ask, query_QD) for share, ask in asks.items()}
    seconds = cpu_rounds(forms, rounds, 1)
    shown = []
    for share, ask in asks.items():
        say(f"{name}: recall at {share}")
        found = [quality(index, exact, query_D, ask()) for query_D in query_QD]
        if share in ("1", "category"):
            far = found
        else:
            count = round(SHARES[share] * items)
            far = [quality(index, exact, query_D, farthest(exact, query_D, count)) for query_D in query_QD[:20]]
        recall, far_recall = (float(np.mean([recall for recall, _ in one])) for one in (found, far))
        returned = min(share_returned for _, share_returned in [*found, *far])
        cost = ratio(seconds[share], seconds["1"])
        ratios[f"cost_over_unfiltered_{name}_{share}"] = cost
        figures[f"recall_{name}_{share}"] = min(recall, far_recall)
        figures[f"returned_k_{name}_{share}"] = returned
        figures[f"us_{name}_{share}"] = float(np.median(seconds[share])) / len(query_QD) * 1e6
        shown.append(
            (name, share, f"{cost:.2f}", f"{figures[f'us_{name}_{share}']:.0f}", f"{recall:.3f}", f"{far_recall:.3f}", f"{returned:.2f}")
        )
    return shown


def ask_ad_hoc(items_filter: ItemFilter, items: int, part: float, rng: np.random.Generator) -> Callable[[], RowSet | None]:
    """A range of `created_at`, which no list was made for, or below one in a thousand some ids of the caller's own."""
    if part < 0.001:
        chosen = rng.choice(items, max(1, round(part * items)), replace=False)
        return lambda: items_filter.allowed(candidates=chosen)
    start = int(rng.integers(0, round((1 - part) * items)))
    return lambda: items_filter.allowed([Clause("created_at", at_least=start, below=start + round(part * items))])


def timed(index: VectorIndex, ask: Callable[[], RowSet | None], query_QD: np.ndarray) -> Callable[[], None]:
    def run() -> None:
        for query_D in query_QD:
            index.search(query_D, K, ask())

    return run


def farthest(exact: ExactIndex, query_D: np.ndarray, count: int) -> RowSet:
    """The `count` rows that score lowest."""
    scores_I = exact.item_ID @ query_D
    return RowSet.of_rows(len(scores_I), np.argpartition(scores_I, count)[:count])


def quality(index: VectorIndex, exact: ExactIndex, query_D: np.ndarray, allowed: RowSet | None) -> tuple[float, float]:
    """Recall against the exact top of what is allowed, and the share returned of what there is to return."""
    true, found = exact.search(query_D, K, allowed), index.search(query_D, K, allowed)
    expected = min(K, len(exact.item_ID) if allowed is None else allowed.count)
    if allowed is not None and not allowed.has(found.rows).all():
        raise AssertionError("a row was returned that is not allowed")
    return float(np.count_nonzero(found.scores >= true.scores[-1])) / expected, len(found.rows) / expected


if __name__ == "__main__":
    main()
