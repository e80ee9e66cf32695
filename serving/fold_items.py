"""Folding changed items into the catalogue: the bundle that `towers index` then builds its index over."""

import itertools
import re
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.item_changes import IN_BUNDLE, ItemChanges
from serving.live_items import LiveItems
from serving.retriever import Retriever
from towers.bundle import Bundle, publish, write_vectors
from towers.columns import ITEM_ID
from towers.pointers import MANIFEST

_FOLDED = r"-c[0-9]+(-[0-9]+)?$"
"""What a version is told apart by from that without changes."""
_SEALED = ("format_version", "version", "created", "parent", "files")


def folded(core: Bundle, bundles_dir: Path, changes_file: Path) -> Bundle:
    """The bundle with all changes of items up to now in its catalogue: a version of its own, which CURRENT does not name.

    Args:
        core: without an index.
        changes_file: of the service; where it is absent or holds nothing new, `core` is returned.

    Raises:
        BundleError, DataError: the bundle cannot encode items, or a file cannot be read or written.
    """
    if not changes_file.is_file():
        return core
    changes = ItemChanges(changes_file)
    try:
        if changes.generation() <= changes.held(core):
            return core
        core = _exported(core, bundles_dir, changes)
        base = Retriever.load(core)
        live = LiveItems(base, changes)
        live.read()
        held = {"name": changes.name, "generation": live.generation}
    finally:
        changes.close()
    whole = f"{re.sub(_FOLDED, '', core.version)}-c{live.generation}"
    more = (f"{whole}-{n}" for n in itertools.count(2))  # for what another file told, or a job that did not come to its end
    version = next(name for name in itertools.chain([whole], more) if not (bundles_dir / name).exists())
    facts = {name: fact for name, fact in core.manifest.items() if name not in _SEALED}
    facts |= {"model_version": base.model_version, IN_BUNDLE: held}
    with tempfile.TemporaryDirectory(dir=bundles_dir.parent, prefix=".items-") as scratch:
        return Bundle.open(publish(bundles_dir, version, _files(base, live, Path(scratch)), facts, core, make_current=False))


def _exported(core: Bundle, bundles_dir: Path, changes: ItemChanges) -> Bundle:
    """The bundle before any change of this file was taken in, as far as it is still there. All of them are then taken in anew, and an item
    that was taken down and came back has its count again."""
    while changes.held(core) and not changes.lost() and (bundles_dir / str(core.manifest.get("parent")) / MANIFEST).is_file():
        core = Bundle.open(bundles_dir / str(core.manifest["parent"]))
    return core


def _files(base: Retriever, live: LiveItems, folder: Path) -> dict[str, Path | bytes]:
    """Catalogue, popularity and vectors, in the order of ids; changed items keep their counts."""
    counts_I = base.bundle.popularity()
    kept = np.ones(len(counts_I), np.bool_)
    kept[base.stock.catalog.rows(live.gone)] = False
    table, came_ND = live.came()
    known = [base.stock.catalog.row(item_id) for item_id in table.column(ITEM_ID).to_pylist()]
    counts_N = [0 if row is None else int(counts_I[row]) for row in known]
    if "train_count" in table.column_names:
        table = table.set_column(table.column_names.index("train_count"), "train_count", pa.array(counts_N, pa.int64()))
    whole = pa.concat_tables([base.stock.table.filter(pa.array(kept)), table])
    ids = whole.column(ITEM_ID).to_pylist()
    order = np.array(sorted(range(len(ids)), key=lambda row: ids[row].encode()), np.int64)
    whole = whole.take(pa.array(order))
    counts = np.concatenate([counts_I[kept], np.array(counts_N, np.int64)])[order]
    write_vectors(folder / "item_vectors.arrow", np.concatenate([base.bundle.item_vectors()[kept], came_ND])[order])
    pq.write_table(whole, folder / "catalog.parquet", compression="zstd")
    pq.write_table(pa.table({ITEM_ID: whole.column(ITEM_ID), "count": counts}), folder / "popularity.parquet", compression="zstd")
    return {path.name: path for path in folder.iterdir()}
