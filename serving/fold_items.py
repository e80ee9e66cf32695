"""Folding changed items into the catalogue: the bundle that `towers index` then builds its index over."""

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
        base = Retriever.load(core)
        live = LiveItems(base, changes)
        if not live.read():
            return core
        version = f"{re.sub(r'-c[0-9]+$', '', core.version)}-c{live.generation}"
        if (bundles_dir / version).exists():
            return Bundle.open(bundles_dir / version)
        held = {"name": changes.name, "generation": live.generation}
    finally:
        changes.close()
    facts = {name: fact for name, fact in core.manifest.items() if name not in _SEALED}
    facts |= {"model_version": base.model_version, IN_BUNDLE: held}
    with tempfile.TemporaryDirectory(dir=bundles_dir.parent, prefix=".items-") as scratch:
        return Bundle.open(publish(bundles_dir, version, _files(base, live, Path(scratch)), facts, core, make_current=False))


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
