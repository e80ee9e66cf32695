"""ScaNN: lists of codes whose errors count most along the item's own direction (Guo et al., Accelerating Large-Scale Inference with
Anisotropic Vector Quantization, 2020). The library is not installed by default, and is loaded when such an index is built or opened.

Its own exact scores are left out: the model's vectors, already mapped, give the same, and need not be kept twice.

Legend: I items, H heads, W width inside the library, C candidates.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.index.build import lists_for
from serving.index.exact import ExactIndex
from serving.index.faiss_index import CODE_FACTORS
from serving.index.layout import Layout
from serving.index.meta import IndexMeta, Setting
from serving.index.overfetch import Near, OverfetchIndex
from towers.bundle import Bundle
from towers.errors import BundleError, ConfigError, DataError

FOLDER = "scann"
"""Of its files in a bundle."""

ASSETS_FILE = "scann_assets.pbtxt"
FILES = (
    "ah_codebook.pb",
    "datapoint_to_token.npy",
    "hashed_dataset.npy",
    "scann_config.pb",
    "serialized_partitioner.pb",
    ASSETS_FILE,
)

_MOST_LISTS = 2000
_SAMPLE = 100_000
_CODE_VALUES = 16
_DIMENSIONS_A_CODE = 2
_THRESHOLD = 0.2
"""Of the anisotropic loss, as its documentation advises."""

_LIST_US, _CANDIDATE_US, _CALL_US = 0.8, 0.05, 15.0
"""What a search costs for each list visited and candidate fetched, and besides: 59k x 64, about."""


def library() -> Any:
    """ScaNN's module for NumPy, which needs no TensorFlow.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from scann import scann_ops_pybind
    except ImportError as error:
        raise ConfigError(
            f"index=scann: ScaNN cannot be loaded ({error}). Install it: pip install 'towers[scann]' (Linux), or take index=ivf"
        ) from error
    return scann_ops_pybind


class Leaves:
    """See `Finder`.

    Args:
        searcher: ScaNN's own, without reordering.
        layout: how vectors lie in it.
        nlist: its lists.
    """

    kind = "scann"
    factors: tuple[float, ...] = CODE_FACTORS

    def __init__(self, searcher: Any, layout: Layout, nlist: int) -> None:
        self.layout, self.nlist = layout, nlist
        self.factory = f"ScaNN{nlist},AH{_DIMENSIONS_A_CODE}"
        self._searcher = searcher

    def near(self, query_HW: NDArray[np.float32], fetch: int, nprobe: int) -> Near:
        """See `Finder.near`."""
        near_HC = np.full((len(query_HW), fetch), -np.inf, np.float32)
        rows_HC = np.full((len(query_HW), fetch), -1, np.int64)
        for head, query_W in enumerate(query_HW):
            rows_C, near_C = self._searcher.search(query_W, fetch, fetch, nprobe)  # fewer where the lists hold fewer
            rows_HC[head, : len(rows_C)], near_HC[head, : len(rows_C)] = rows_C, near_C
        return Near(near_HC, rows_HC)

    def search_us(self, fetch: int, nprobe: int) -> float:
        """See `Finder.search_us`."""
        return _CALL_US + nprobe * _LIST_US + fetch * _CANDIDATE_US

    def save(self, folder: Path) -> dict[str, Path]:
        """See `Finder.save`."""
        (folder / FOLDER).mkdir()
        try:
            self._searcher.serialize(str(folder / FOLDER), True)  # paths as seen from the folder
        except (RuntimeError, OSError) as error:
            raise DataError(f"writing {folder / FOLDER}: {str(error)[-200:]}. Free some space, then run the job again") from error
        return {f"{FOLDER}/{name}": folder / FOLDER / name for name in FILES}


def build_scann(exact: ExactIndex, metric: str, tuned_k: int, progress: Callable[[str], None]) -> OverfetchIndex:
    """Codes of all items; one list is visited until it is tuned. Two builds differ a little: ScaNN draws as it likes.

    Args:
        exact: the catalogue.
        metric: one of `layout.METRICS`; augmented vectors have norm 1, and the nearest of them are those of greatest product.
        tuned_k: see `OverfetchIndex`.
        progress: told what happens next.

    Raises:
        ConfigError: ScaNN is not installed.
        DataError: there are fewer items than a code has values.
    """
    item_ID = exact.item_ID
    rows, dim = item_ID.shape
    if rows < _CODE_VALUES:
        raise DataError(f"index=scann: got {rows} items, expected at least {_CODE_VALUES}; take index=exact")
    layout = Layout(dim, metric, exact.largest_norm)
    lists = min(_MOST_LISTS, lists_for(rows))
    progress(f"ScaNN{lists},AH{_DIMENSIONS_A_CODE} {metric}: {rows:,} vectors")
    builder = library().builder(layout.items(item_ID), tuned_k, "dot_product").tree(lists, 1, training_sample_size=min(rows, _SAMPLE))
    searcher = builder.score_ah(_DIMENSIONS_A_CODE, anisotropic_quantization_threshold=_THRESHOLD).build()
    return OverfetchIndex(Leaves(searcher.searcher, layout, lists), exact, Setting(1, tuned_k), tuned_k)


def build_leaves(
    exact: ExactIndex, metrics: Sequence[str], seed: int, tuned_k: int, progress: Callable[[str], None]
) -> list[OverfetchIndex]:
    """What tuning compares; ScaNN takes no seed."""
    return [build_scann(exact, metric, tuned_k, progress) for metric in metrics]


def open_leaves(bundle: Bundle, meta: IndexMeta) -> Leaves:
    """The bundle's index. ScaNN's own loader would unpickle a file beside the others; its core reads these alone.

    Raises:
        BundleError: it is not the index that index.json describes.
        ConfigError: ScaNN is not installed.
    """
    paths = [bundle.path(f"{FOLDER}/{name}") for name in FILES]
    core = library().scann_pybind.ScannNumpy
    with bundle.reading(f"{FOLDER}/{ASSETS_FILE}") as path:
        searcher = core(str(paths[0].parent), path.read_text())
    layout = Layout(meta.dim, meta.metric, meta.largest_norm)
    leaves = Leaves(searcher, layout, meta.nlist)
    if (searcher.size(), leaves.factory) != (meta.rows, meta.factory):
        raise BundleError(
            f"{path}: rows and lists are {(searcher.size(), leaves.factory)}, index.json says {(meta.rows, meta.factory)}; build it"
            " again: towers index"
        )
    return leaves
