"""A catalogue that was indexed says the same as the table it was made of."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.catalog import Catalog
from serving.catalog_files import open_catalog, save_catalog
from serving.item_texts import Items, as_json, ids_of
from serving.messages import Item
from towers.bundle import Bundle, publish
from towers.errors import BundleError
from towers.vocab import Vocabulary

HIDDEN, UNTRAINED = "item-07", "item-08"


def indexed(bundle: Bundle, folder: Path, **files: Path | bytes) -> Bundle:
    """A version of the bundle with the files of its catalogue."""
    (folder / "scratch").mkdir(parents=True)
    return Bundle.open(publish(folder, "v2", {**save_catalog(bundle, folder / "scratch"), **files}, {}, parent=bundle))


def test_mapped_and_made_are_equal(bundle: Bundle, world: Any, tmp_path: Path) -> None:
    ids = world.catalog["item_id"].to_pylist()
    counts = np.arange(len(ids))
    made, opened = (
        Catalog.of_table(world.catalog, counts),
        open_catalog(indexed(bundle, tmp_path), bundle.preprocessor(), len(world.catalog)),
    )
    rows, scores = np.array([7, 0, len(ids) - 1, 12]), np.array([0.75, 1e-9, -0.5, 1.0], np.float32)
    facts = world.catalog.take(pa.array(rows)).to_pylist()
    expected = [Item(f["item_id"], f["title"], float(s), f["categories"] or []) for f, s in zip(facts, scores, strict=True)]
    for catalog in (made, opened):
        assert len(catalog) == catalog.size == len(ids)
        assert catalog.rows(["nope", *ids[::-1]], [ids[3]]).tolist() == list(range(len(ids)))
        assert catalog.row(UNTRAINED) == ids.index(UNTRAINED) and catalog.row("nope") is None
        assert catalog.hidden.rows().tolist() == [ids.index(HIDDEN)]
        assert catalog.ids(rows) == [one.item_id for one in expected] == [ids[row] for row in rows]
        assert list(catalog.items(rows, scores)) == expected


def test_one_vocabulary_where_the_model_knows_every_item(bundle: Bundle, world: Any, tmp_path: Path) -> None:
    fitted = bundle.preprocessor()
    opened = indexed(bundle, tmp_path / "own")
    assert (
        opened.has("items/ids.arrow") and open_catalog(opened, fitted, len(world.catalog)).vocabulary is not fitted.vocabularies["item_id"]
    )
    Vocabulary.fit(world.catalog["item_id"].to_pylist()).save(tmp_path, "item_id")
    files: dict[str, Path | bytes] = {f"vocab/item_id.{end}": tmp_path / f"item_id.{end}" for end in ("arrow", "npy")}
    known = Bundle.open(publish(tmp_path / "known", "v1", files, {}, parent=bundle))
    opened, fitted = indexed(known, tmp_path / "shared"), known.preprocessor()
    assert (
        not opened.has("items/ids.arrow") and open_catalog(opened, fitted, len(world.catalog)).vocabulary is fitted.vocabularies["item_id"]
    )


def test_parts_of_other_catalogues_are_refused(bundle: Bundle, world: Any, tmp_path: Path) -> None:
    size = len(world.catalog)
    pq.write_table(pa.table({"count": np.arange(size - 1)}), tmp_path / "short.parquet")
    other = indexed(bundle, tmp_path / "other", **{"popularity.parquet": tmp_path / "short.parquet"})
    with pytest.raises(BundleError, match=f"of .*, {size - 1}\\) items do not belong together"):
        open_catalog(other, bundle.preprocessor(), len(world.catalog))


def test_items_are_the_json_that_they_are_sent_as(world: Any) -> None:
    ids = world.catalog["item_id"].to_pylist()
    catalog = Catalog.of_table(world.catalog, np.zeros(len(ids), np.int64))
    rows = np.arange(len(ids))
    items = catalog.items(rows, np.linspace(1, 0, len(ids)).astype(np.float32))
    sent = msgspec.json.Encoder(enc_hook=as_json).encode({"items": items, "ids": ids_of(items)})
    told = msgspec.json.decode(sent)
    assert told["ids"] == ids_of(list(items)) == ids
    assert told["items"] == msgspec.to_builtins(list(items)) and len(items) == len(ids)
    assert items[2].item_id == ids[2] and items[:2] == list(items)[:2] and items == list(items)
    empty = Items([], np.empty(0, np.float32))
    assert (len(empty), list(empty), empty.json, empty.ids_json) == (0, [], b"[]", b"[]")
    with pytest.raises(TypeError, match="complex"):
        msgspec.json.Encoder(enc_hook=as_json).encode(1j)
