"""Writing an index, and opening whichever one a bundle holds."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from serving.index.exact import ExactIndex
from serving.index.faiss_files import list_rows, read_faiss, write_faiss
from serving.index.faiss_index import FaissIndex
from serving.index.half import scan_of, served_vectors
from serving.index.interface import VectorIndex
from serving.index.kinds import FINDERS, KINDS, Approximate
from serving.index.layout import Layout
from serving.index.meta import FAISS_FILE, META_FILE, ROTATION_FILE, IndexMeta, PartMeta, Setting, read_meta
from serving.index.overfetch import OverfetchIndex
from serving.index.rowset import RowSet
from towers.bundle import Bundle
from towers.errors import BundleError


def open_index(bundle: Bundle) -> VectorIndex:
    """The bundle's index; the exact scan for a bundle that was exported and not indexed.

    Graphs and lists of half-precision vectors are mapped, shared with other processes and read when first visited; short codes are read.

    Raises:
        BundleError: the index is damaged, belongs to other item vectors, or is of an unknown kind.
    """
    if not bundle.has(META_FILE):
        return ExactIndex(bundle.item_vectors())
    meta = read_meta(bundle)
    if meta.kind not in KINDS:
        raise BundleError(
            f"bundle {bundle.folder} has a {meta.kind!r} index, this version reads {', '.join(KINDS)}; run `towers index` again"
        )
    exact = scan_of(served_vectors(bundle), meta.largest_norm)
    if meta.kind == "exact":
        return exact
    parts = {}
    for part in meta.parts:
        inner = _read(bundle, part.file, "inner_product", meta, part.rows, part.nlist)
        rows = _rows(inner)
        if len(rows) != part.rows or rows[-1] >= meta.rows:
            raise BundleError(f"{bundle.path(part.file)} holds rows of another catalogue; build it again: towers index")
        among, setting = RowSet(meta.rows, len(rows), rows, None), Setting(part.nprobe, part.candidates)
        parts[part.key] = FaissIndex(inner, exact, _layout(bundle, "inner_product", meta, inner), part.factory, setting, meta.k, among)
    if meta.kind != "ivf":
        return OverfetchIndex(FINDERS[meta.kind](bundle, meta), exact, meta.setting, meta.k, parts)
    index = _read(bundle, FAISS_FILE, meta.metric, meta, meta.rows, meta.nlist)
    layout = _layout(bundle, meta.metric, meta, index)
    return FaissIndex(index, exact, layout, meta.factory, meta.setting, meta.k, parts=parts, margin=meta.margin)


def save_index(index: FaissIndex, path: Path) -> None:
    """Write the FAISS part.

    Raises:
        DataError: the disk is full or not writable.
    """
    write_faiss(index.index, path)


def save_whole(index: Approximate, parts: Sequence[PartMeta], folder: Path) -> dict[str, Path]:
    """Write an index and those of its declared values; the files' names in a bundle, and where they are.

    Raises:
        DataError: the disk is full or not writable.
    """
    lists = {part.file: index.parts[part.key] for part in parts}
    files: dict[str, Path] = {}
    if isinstance(index, FaissIndex):
        lists[FAISS_FILE] = index
    else:
        files |= index.finder.save(folder)
    for name, one in lists.items():
        files[name] = folder / name
        save_index(one, files[name])
        if one.layout.rotation_WW is not None:
            files[ROTATION_FILE] = folder / ROTATION_FILE
            np.save(files[ROTATION_FILE], one.layout.rotation_WW, allow_pickle=False)
    return files


def _read(bundle: Bundle, name: str, metric: str, meta: IndexMeta, rows: int, nlist: int) -> faiss.IndexIVF:
    path = bundle.path(name)
    # Of tables of codes faiss counts the bytes and never makes them; its longest loop is over the lists.
    tables = 64 * nlist * Layout(meta.dim, metric, 1.0).width
    index = read_faiss(path, faiss.IO_FLAG_MMAP, tables, max(1, nlist))
    if not isinstance(index, faiss.IndexIVF):
        raise BundleError(f"{path} holds a {type(index).__name__}, expected an inverted file; build it again: towers index")
    layout = Layout(meta.dim, metric, meta.largest_norm)
    got = (index.ntotal, index.d, index.nlist, index.metric_type)
    expected = (rows, layout.width, nlist, faiss.METRIC_L2 if layout.augmented else faiss.METRIC_INNER_PRODUCT)
    if got != expected:
        raise BundleError(f"{path}: rows, width, lists and metric are {got}, index.json says {expected}; build it again: towers index")
    lists: Any = None if index.invlists is None else faiss.downcast_InvertedLists(index.invlists)
    if isinstance(lists, faiss.OnDiskInvertedLists):
        lists.prefetch_nthread = 0  # Its default starts 32 threads for every search: 460 us instead of 37 us at 59k x 64.
    elif type(lists).__name__ != "BlockInvertedLists":
        raise BundleError(f"{path} holds {type(lists).__name__}, expected lists that can be mapped, or codes; build it again: towers index")
    return index


def _layout(bundle: Bundle, metric: str, meta: IndexMeta, index: faiss.IndexIVF) -> Layout:
    """Codes are of vectors that were turned."""
    layout = Layout(meta.dim, metric, meta.largest_norm)
    if not isinstance(index, faiss.IndexIVFPQFastScan):
        return layout
    with bundle.reading(ROTATION_FILE) as path:
        rotation_WW = np.load(path, allow_pickle=False)
    if rotation_WW.shape != (layout.width, layout.width) or rotation_WW.dtype != np.float32:
        raise BundleError(
            f"{path}: got {rotation_WW.dtype} {rotation_WW.shape}, expected float32 of width {layout.width}; run `towers index`"
        )
    return replace(layout, rotation_WW=rotation_WW)


def _rows(index: faiss.IndexIVF) -> NDArray[np.int64]:
    """The ids in an index, ascending."""
    return np.sort(np.concatenate([np.empty(0, np.int64), *list_rows(index)]))
