"""The catalogue's files in a bundle, mapped and shared by processes: `items/`, written by `towers index`."""

from pathlib import Path

import pyarrow as pa

from serving.catalog import Catalog, hidden_rows
from serving.item_texts import item_texts
from towers.bundle import Bundle
from towers.columns import IS_HIDDEN, ITEM_ID
from towers.errors import BundleError
from towers.preprocess import Preprocessor
from towers.vocab import Vocabulary

FOLDER = "items"
_TEXTS, _IDS, _SHARED = f"{FOLDER}/texts.arrow", f"{FOLDER}/ids.arrow", f"vocab/{ITEM_ID}.arrow"


def save_catalog(bundle: Bundle, scratch: Path) -> dict[str, Path | bytes]:
    """Write what `open_catalog` maps under a folder; returns the bundle's files.

    Ids are looked up in the model's item vocabulary where that holds the same ones, and in one of their own elsewhere.
    """
    folder = scratch / FOLDER
    folder.mkdir()
    catalog = bundle.catalog()
    table = pa.table({"text": item_texts(catalog)})
    with pa.OSFile(str(folder / Path(_TEXTS).name), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=max(1, len(table)))
    ids = catalog.column(ITEM_ID).combine_chunks()
    shared = bundle.has(_SHARED) and ids.equals(Vocabulary.open(bundle.path(_SHARED).parent, ITEM_ID).values())
    if not shared:
        Vocabulary.numbered(ids.to_pylist()).save(folder, Path(_IDS).stem)
    return {f"{FOLDER}/{path.name}": path for path in sorted(folder.iterdir())}


def open_catalog(bundle: Bundle, preprocessor: Preprocessor, size: int) -> Catalog:
    """The bundle's catalogue; made of its table where it was not indexed.

    Args:
        size: items that have a vector.

    Raises:
        BundleError: a part is unreadable, or of another catalogue.
    """
    counts_I = bundle.popularity()
    with bundle.reading("catalog.parquet"):
        if not bundle.has(_TEXTS):
            catalog = Catalog.of_table(bundle.catalog(), counts_I)
        else:
            hidden = hidden_rows(bundle.catalog([IS_HIDDEN]))
            catalog = Catalog(_ids(bundle, preprocessor), _texts(bundle), hidden, counts_I)
    sizes = (size, len(catalog), len(catalog.vocabulary.values()), catalog.hidden.size, len(counts_I))
    if len(set(sizes)) > 1:
        raise BundleError(
            f"bundle {bundle.folder}: vectors, texts, ids, catalogue and popularity of {sizes} items do not belong together; export it anew"
        )
    catalog.vocabulary.hold()
    return catalog


def _texts(bundle: Bundle) -> pa.LargeBinaryArray:
    with bundle.reading(_TEXTS) as path:
        column = pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("text")
        return column.chunk(0) if column.num_chunks else pa.array([], pa.large_binary())


def _ids(bundle: Bundle, preprocessor: Preprocessor) -> Vocabulary:
    if not bundle.has(_IDS):
        return preprocessor.vocabularies[ITEM_ID]
    bundle.path(_IDS.replace(".arrow", ".npy"))
    with bundle.reading(_IDS) as path:
        return Vocabulary.open(path.parent, path.stem)
