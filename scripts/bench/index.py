"""How fast the tuned index is beside ScaNN, hnswlib and usearch at equal recall: top 100, one query at a time, one thread.

    python scripts/bench/index.py [--quick] [--only 100k_64 1m_64 5m_64]

Items and users: see vector_world.py, 59,000 and 1,000,000 x 64; with TOWERS_DATA_DIR also the raw dot factors of Gowalla (a truncated SVD
of the interactions, norms spread widely; users are summed from their training items). Ours is built, tuned and chosen by `towers index` at
a floor and searched as opened from the bundle, exact rescoring and all. Each peer is given the fastest of its settings that reaches the
same recall on users kept apart; then all are timed in turns on other users, in processor time. ScaNN is measured where it is installed
(1.4.2 needs no TensorFlow for this: `pip install --no-deps --target <folder> scann==1.4.2`, the folder on PYTHONPATH); hnswlib and usearch
are built for fewer than 100,000 items, and so are `index_hnsw` and `index_scann`, what `towers index index=hnsw`
and `index=scann` publish; none at 5M. `growth_<small>_<large>`: how many times dearer ours is at the larger of two measured sizes, over the
square root of how many times more items it has.
"""

import argparse
import importlib.util
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import faiss
import numpy as np
from clocks import cpu_rounds, ratio
from report import finish, say
from vector_world import VectorWorld, gowalla_factors, indexed, two_towers

from serving.index.exact import ExactIndex
from serving.index.stored import open_index
from serving.index.tune import Judge
from towers.errors import GateError

K = 100
SIZES = {"20k_64": 20_000, "59k_64": 59_000, "100k_64": 100_000, "1m_64": 1_000_000, "5m_64": 5_000_000}
"""Drawn worlds, from small to large."""
FLOORS = {"r95": 0.95, "r99": 0.99}
Search = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Peer:
    """A built index of another library: settings from fast to thorough, each a search that returns rows."""

    name: str
    settings: Sequence[tuple[str, Search]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20,000 items, and fewer rounds")
    parser.add_argument("--only", nargs="+", choices=[*SIZES, "gowalla_64"], metavar="ITEMS_DIM", help="these worlds alone: %(choices)s")
    told = parser.parse_args()
    quick = told.quick
    faiss.omp_set_num_threads(1)
    real = ["gowalla_64"] if os.environ.get("TOWERS_DATA_DIR") else []
    names = told.only or (["20k_64"] if quick else ["59k_64", "1m_64", *real])
    worlds = {name: partial(two_towers, SIZES[name], 64) if name in SIZES else gowalla_factors for name in names}
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    rows = [("items", "index", "setting", "recall@100", "us", "x ours")]
    for name, make in worlds.items():
        say(f"{name}: vectors")
        world = make()
        peers = built_peers(world, hnsw=len(world.item_ID) < 100_000) if len(world.item_ID) <= 1_000_000 else []
        for floor_name, floor in FLOORS.items():
            with tempfile.TemporaryDirectory() as folder:
                rows += compare(name, floor_name, floor, world, peers, Path(folder), 3 if quick else 9, ratios, figures)
    drawn = [name for name in SIZES if name in worlds]
    for (small, large), floor_name in product(pairwise(drawn), FLOORS):
        dearer = figures[f"us_{large}_{floor_name}"] / figures[f"us_{small}_{floor_name}"]
        ratios[f"growth_{small}_{large}_{floor_name}"] = dearer / (SIZES[large] / SIZES[small]) ** 0.5
    finish("index", rows, ratios, figures)


def compare(
    name: str, floor_name: str, floor: float, world: VectorWorld, peers: Sequence[Peer], folder: Path, rounds: int,
    ratios: dict[str, float], figures: dict[str, float],
) -> list[tuple[str, ...]]:  # fmt: skip
    """Ours and the peers at one size and floor."""
    exact = ExactIndex(world.item_ID)
    tuning, testing = (Judge(exact, query_QD[:300], K) for query_QD in (world.tune_QD, world.test_QD))
    forms = {"towers": ours(folder, world, floor, "ivf")}
    if len(world.item_ID) < 100_000:
        for kind in ("hnsw", *(["scann"] if importlib.util.find_spec("scann") else [])):
            try:
                forms[f"index_{kind}"] = ours(folder, world, floor, kind)
            except GateError as refused:
                say(f"{name}: {refused}")
    for peer in peers:
        chosen = next(((label, search) for label, search in peer.settings if recall(tuning, exact, search) >= floor), None)
        if chosen is None:
            say(f"{name}: {peer.name} does not reach {floor}")
        else:
            forms[peer.name] = chosen
    seconds = cpu_rounds({who: timed(search, world.test_QD[:200]) for who, (_, search) in forms.items()}, rounds)
    shown = []
    for who, (label, search) in forms.items():
        us, slower = float(np.median(seconds[who])) / 200 * 1e6, ratio(seconds[who], seconds["towers"])
        found = recall(testing, exact, search)
        shown.append((f"{name} {floor_name}", who, label, f"{found:.4f}", f"{us:.0f}", f"{slower:.2f}"))
        figures[f"us_{name}_{floor_name}" if who == "towers" else f"us_{who}_{name}_{floor_name}"] = us
        figures[f"recall_{name}_{floor_name}" if who == "towers" else f"recall_{who}_{name}_{floor_name}"] = found
        if who == "scann":
            ratios[f"faiss_over_scann_{name}_{floor_name}"] = ratio(seconds["towers"], seconds[who])
        elif who != "towers":
            ratios[f"{who}_over_faiss_{name}_{floor_name}"] = slower
    return shown


def ours(folder: Path, world: VectorWorld, floor: float, kind: str) -> tuple[str, Search]:
    """What `towers index` publishes for one kind."""
    index = open_index(indexed(folder, world, floor, kind))
    stats = index.stats()
    return f"{stats.factory} {stats.metric} {stats.nprobe}/{stats.candidates}", lambda query_D: index.search(query_D, K).rows


def recall(judge: Judge, exact: ExactIndex, search: Search) -> float:
    """As the tuner counts it, of rows."""
    hits = 0
    for query_D, kth in zip(judge.query_QD, judge.kth_Q, strict=True):
        hits += int(np.count_nonzero(exact.item_ID[np.asarray(search(query_D), np.int64)] @ query_D >= kth))
    return hits / (judge.k * len(judge.query_QD))


def timed(search: Search, query_QD: np.ndarray) -> Callable[[], None]:
    def run() -> None:
        for query_D in query_QD:
            search(query_D)

    return run


def built_peers(world: VectorWorld, hnsw: bool) -> list[Peer]:
    peers = []
    if importlib.util.find_spec("scann"):
        say("building scann")
        peers.append(scann_peer(world.item_ID))
    if hnsw:
        say("building hnswlib and usearch")
        peers += [hnswlib_peer(world.item_ID), usearch_peer(world.item_ID)]
    return peers


def scann_peer(item_ID: np.ndarray) -> Peer:
    """Tree, anisotropic hashing and exact reordering, as its documentation advises; 4 * sqrt(n) leaves, at most 2,000."""
    from scann import scann_ops_pybind

    leaves = min(2000, round(4 * len(item_ID) ** 0.5))
    builder = scann_ops_pybind.builder(item_ID, K, "dot_product").tree(leaves, 20, training_sample_size=min(len(item_ID), 100_000))
    built = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(200).build()

    def at(visited: int, reordered: int) -> Search:
        return lambda query_D: built.search(query_D, leaves_to_search=visited, pre_reorder_num_neighbors=reordered)[0]

    grid = [
        (visited, reordered) for visited in (8, 12, 16, 20, 30, 40, 60, 80, 120, 200) for reordered in (150, 200, 300, 400, 500, 800, 1200)
    ]
    return Peer("scann", by_cost([(f"{v} leaves, reorder {r}", at(v, r)) for v, r in grid], item_ID))


def hnswlib_peer(item_ID: np.ndarray) -> Peer:
    import hnswlib

    built = hnswlib.Index("ip", item_ID.shape[1])
    built.init_index(len(item_ID), M=16, ef_construction=200, random_seed=0)
    built.set_num_threads(2)
    built.add_items(item_ID)
    built.set_num_threads(1)

    def at(ef: int) -> Search:
        def search(query_D: np.ndarray) -> np.ndarray:
            built.set_ef(ef)
            return built.knn_query(query_D, K)[0][0]

        return search

    return Peer("hnswlib", [(f"ef {ef}", at(ef)) for ef in (100, 140, 200, 280, 400, 600, 900, 1400, 2000)])


def usearch_peer(item_ID: np.ndarray) -> Peer:
    from usearch.index import Index

    built = Index(ndim=item_ID.shape[1], metric="ip", dtype="f32", connectivity=16, expansion_add=200)
    built.add(np.arange(len(item_ID)), item_ID, threads=2)

    def at(ef: int) -> Search:
        def search(query_D: np.ndarray) -> np.ndarray:
            built.expansion_search = ef
            return built.search(query_D, K, threads=1).keys

        return search

    return Peer("usearch", [(f"ef {ef}", at(ef)) for ef in (100, 140, 200, 280, 400, 600, 900, 1400, 2000)])


def by_cost(settings: list[tuple[str, Search]], item_ID: np.ndarray) -> list[tuple[str, Search]]:
    """Settings from the fastest on."""
    query_QD = item_ID[:: max(1, len(item_ID) // 60)][:60]
    seconds = cpu_rounds({label: timed(search, query_QD) for label, search in settings}, 3, warm=1)
    return sorted(settings, key=lambda setting: float(np.median(seconds[setting[0]])))


if __name__ == "__main__":
    main()
