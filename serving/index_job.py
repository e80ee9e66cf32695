"""The work of `towers index`: build the index, tune it on held-out users, and publish a bundle that holds it."""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serving.attribute_files import FOLDER, open_attributes, save_attributes
from serving.attributes import Attributes
from serving.catalog_files import open_catalog, save_catalog
from serving.config import ServingConfig, state_dir
from serving.fold_items import folded
from serving.index.build import choose_kind, metrics_for
from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.half import HalfIndex, fits, save_half
from serving.index.kinds import BUILDERS, Approximate
from serving.index.margin import list_margin
from serving.index.meta import META_FILE, IndexMeta, vectors_sha256
from serving.index.parts import build_parts, values_with_parts
from serving.index.rowset import RowSet
from serving.index.stored import save_whole
from serving.index.tune import Judge, exact_us, tune
from serving.item_changes import ITEMS_FILE
from serving.reach import REACH_FILE, lacking
from towers.bundle import Bundle, current, publish
from towers.errors import BundleError, DataError
from towers.held_out import HELD_OUT, QUERY_VECTORS, HeldOut, query_vectors_file
from towers.job import write_json
from towers.pointers import waiting, waits_no_more

_SEALED = ("format_version", "version", "created", "parent", "files")


def run(config: ServingConfig) -> str:
    """Index the items of the bundle that waits for it, else of the current one; publishes a version whose parent is what was exported.

    Returns:
        path of run_dir/index.json.

    Raises:
        BundleError: there is no bundle, or it is damaged.
        DataError: item or user vectors are missing or unusable, or the disk is full.
        GateError: no index reaches index.recall_floor; nothing is published.
    """
    started = time.perf_counter()
    run_dir = Path(config.run_dir)
    exported = core_bundle(run_dir / "bundles")
    core = folded(exported, run_dir / "bundles", state_dir(config) / ITEMS_FILE)
    exact = ExactIndex(core.item_vectors())
    vectors_file = query_vectors_file(run_dir / "export", core.weights_sha256)
    query_QD = held_out_queries(vectors_file, exact.item_ID.shape[1], config.index.queries, config.seed)
    _progress("attributes for filters")
    attributes = open_attributes(core, len(exact.item_ID))
    values = values_with_parts(attributes, config.index)
    kind = choose_kind(config.index.name, len(exact.item_ID), config.index.exact_up_to)
    served = _served(config, exact)
    if kind == "exact":
        meta, index = _exact_meta(config, core, exact, query_QD), None
    else:
        meta, index = _tuned(kind, config, core, exact, served, query_QD, values)
    lacks_I = _reach(config, core, exact) if config.index.reach else None
    folder = _publish(run_dir, core, meta, index, attributes, lacks_I, served)
    waits_no_more(run_dir / "bundles", exported.version)
    report = {"bundle": str(folder), "parent": core.version, "wall_s": round(time.perf_counter() - started, 2), **meta.to_json()}
    print(table(meta))
    return str(write_json(run_dir / "index.json", report))


def core_bundle(bundles_dir: Path) -> Bundle:
    """The bundle that waits for its index; where none does the current one, or what that was indexed from.

    Raises:
        BundleError: there is none, it is damaged, or its parent is gone.
    """
    bundle = Bundle.open(waiting(bundles_dir) or current(bundles_dir))
    if not bundle.has(META_FILE):
        return bundle
    parent = bundle.manifest.get("parent")
    if not parent:
        raise BundleError(f"bundle {bundle.folder} holds an index and names no parent; run `towers export`, then `towers index`")
    return Bundle.open(bundles_dir / str(parent))


def held_out_queries(path: Path, dim: int, most: int, seed: int) -> NDArray[np.float32]:
    """Up to `most` user vectors that export kept apart, drawn by seed: float32 [Q, D]; none where the file is absent.

    Raises:
        DataError: they do not fit the item vectors, or are not finite.
    """
    if not path.is_file():
        return np.empty((0, dim), np.float32)
    try:
        query_QD = np.load(path, allow_pickle=False, mmap_mode="r")
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path} is not a NumPy file ({error}); run `towers export` again") from error
    if query_QD.ndim != 2 or query_QD.shape[1] != dim:
        raise DataError(f"{path}: got shape {query_QD.shape}, expected [users, {dim}] as the item vectors; run `towers export` again")
    chosen = np.random.default_rng(seed).choice(len(query_QD), min(most, len(query_QD)), replace=False)
    query_QD = np.asarray(query_QD[np.sort(chosen)], np.float32)
    bad = int((~np.isfinite(query_QD)).any(1).sum())
    if bad:
        raise DataError(f"{path}: {bad} of {len(query_QD)} user vectors hold NaN or infinity; did training diverge?")
    return query_QD


def table(meta: IndexMeta) -> str:
    """What was measured, for people: settings that no other beats in both recall and time, and the exact scan."""
    lines = [
        f"{meta.rows:,} items x {meta.dim}, {meta.factory or 'exact scan'}, {meta.metric};"
        f" top {meta.k} of {meta.queries:,} held-out queries",
        f"{'':2} {'index':24} {'nprobe':>6} {'rescored':>8} {'recall@' + str(meta.k):>10} {'us/search':>9}",
    ]
    shown = [p for p in meta.curve if not any(q.recall >= p.recall and q.search_us < p.search_us for q in meta.curve)]
    chosen = (meta.factory, meta.metric, meta.nprobe, meta.candidates)
    shown += [p for p in meta.curve if (p.factory, p.metric, p.nprobe, p.candidates) == chosen and p not in shown]
    for p in sorted(shown, key=lambda p: p.search_us):
        mark = "->" if (p.factory, p.metric, p.nprobe, p.candidates) == chosen else ""
        name = p.factory + (" l2" if p.metric == "l2_augmented" else "")
        lines.append(f"{mark:2} {name:24} {p.nprobe:>6} {p.candidates:>8} {p.recall:>10.4f} {p.search_us:>9.1f}")
    lines.append(f"{'':2} {'exact':24} {'':>6} {'':>8} {1:>10.4f} {meta.exact_us:>9.1f}")
    if meta.parts:
        worst = min(part.recall for part in meta.parts)
        lines.append(f"{len(meta.parts)} declared values have an index of their own; recall@{meta.k} {worst:.4f} at least")
    return "\n".join(lines)


def _exact_meta(config: ServingConfig, core: Bundle, exact: ExactIndex, query_QD: NDArray[np.float32]) -> IndexMeta:
    rows, dim = exact.item_ID.shape
    k = min(config.index.k, rows)
    cost_us = exact_us(exact, query_QD, k)
    return IndexMeta(
        kind="exact", factory="", metric="inner_product", rows=rows, dim=dim, nlist=0, nprobe=0, candidates=0,
        item_vectors_sha256=vectors_sha256(core), largest_norm=exact.largest_norm, k=k, queries=len(query_QD),
        recall=1.0, recall_floor=config.index.recall_floor, search_us=cost_us, exact_us=cost_us, curve=(),
    )  # fmt: skip


def _served(config: ServingConfig, exact: ExactIndex) -> ExactIndex:
    """The vectors that will answer: rounded where the catalogue is large."""
    if config.index.half_from is None or len(exact.item_ID) < config.index.half_from or not fits(exact):
        return exact
    return HalfIndex(exact.item_ID.astype(np.float16), exact.largest_norm)


def _tuned(
    kind: str,
    config: ServingConfig,
    core: Bundle,
    exact: ExactIndex,
    served: ExactIndex,
    query_QD: NDArray[np.float32],
    values: Sequence[RowSet],
) -> tuple[IndexMeta, Approximate]:
    if not len(query_QD):
        raise DataError(_no_queries(Path(config.run_dir) / "export", core))
    judge = Judge(exact, query_QD, config.index.k)
    built = BUILDERS[kind](served, metrics_for(core.model_config().scored_by, exact), config.seed, judge.k, _progress)
    _progress("tuning")
    tuned = tune(judge, built, config.index.recall_floor)
    parts = build_parts(exact, served, values, query_QD, config.index, config.seed, _progress)
    tuned.index.parts.update((part.key, index) for part, index in parts)
    stats, margin = tuned.index.stats(), None
    if isinstance(tuned.index, FaissIndex):
        margin = tuned.index.margin = list_margin(tuned.index, exact, query_QD, judge.k, config.index.recall_floor)
    meta = IndexMeta(
        kind=stats.kind, factory=stats.factory, metric=stats.metric, rows=stats.rows, dim=stats.dim, nlist=stats.nlist, nprobe=stats.nprobe,
        candidates=stats.candidates, item_vectors_sha256=vectors_sha256(core), largest_norm=exact.largest_norm, k=judge.k,
        queries=len(query_QD), recall=tuned.point.recall, recall_floor=config.index.recall_floor, search_us=tuned.point.search_us,
        exact_us=exact_us(exact, query_QD, judge.k), curve=tuned.curve, parts=tuple(part for part, _ in parts), margin=margin,
    )  # fmt: skip
    return meta, tuned.index


def _no_queries(export_dir: Path, core: Bundle) -> str:
    """Why there is nobody to judge an approximate index by, and what to do."""
    path = query_vectors_file(export_dir, core.weights_sha256)
    others = [] if path.is_file() else sorted(other.name for other in export_dir.glob(QUERY_VECTORS))
    if others:
        return (
            f"{export_dir} holds held-out user vectors of another model ({', '.join(others)}) than bundle {core.version}, which needs"
            f" {path.name}: an index tuned on them would answer this model's users badly. Run `towers export` again, or take index=exact"
        )
    return (
        f"{path} holds no held-out user vectors, so an approximate index cannot be judged. Export again from a run with validation users"
        " who allow `personalize`, or take index=exact"
    )


def _reach(config: ServingConfig, core: Bundle, exact: ExactIndex) -> NDArray[np.float32]:
    """What each item lacks to be seen by `index.reach` of the people; see serving.reach."""
    _progress("reach of every item")
    held = HeldOut.read(Path(config.run_dir) / "export" / HELD_OUT, "valid", core.weights_sha256)
    return lacking(exact, held, open_catalog(core, core.preprocessor(), len(exact.item_ID)), config.index.reach)


def _publish(
    run_dir: Path,
    core: Bundle,
    meta: IndexMeta,
    index: Approximate | None,
    attributes: Attributes,
    lacks_I: NDArray[np.float32] | None,
    served: ExactIndex,
) -> Path:
    bundles_dir = run_dir / "bundles"
    number = next(n for n in range(1, 1_000_000) if not (bundles_dir / f"{core.version}-i{n}").exists())
    facts = {name: fact for name, fact in core.manifest.items() if name not in _SEALED}
    facts["model_version"] = facts.get("model_version", core.version)
    facts["index"] = {"kind": meta.kind, "factory": meta.factory, "recall": meta.recall, "k": meta.k}
    with tempfile.TemporaryDirectory(dir=run_dir, prefix=".index-") as scratch:
        files: dict[str, Path | bytes] = {META_FILE: (json.dumps(meta.to_json(), indent=2) + "\n").encode()}
        files |= save_attributes(attributes, meta.rows, Path(scratch) / FOLDER)
        files |= save_catalog(core, Path(scratch))
        if lacks_I is not None:
            files[REACH_FILE] = Path(scratch) / REACH_FILE
            np.save(Path(scratch) / REACH_FILE, lacks_I, allow_pickle=False)
        if isinstance(served, HalfIndex):
            files |= save_half(served.item_ID, Path(scratch))
        if index is not None:
            files |= save_whole(index, meta.parts, Path(scratch))
        return publish(bundles_dir, f"{core.version}-i{number}", files, facts, parent=core)


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
