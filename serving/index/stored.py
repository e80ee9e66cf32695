"""Opening whichever index a bundle holds."""

from collections.abc import Callable

from serving.index.exact import ExactIndex
from serving.index.faiss_index import FaissIndex
from serving.index.interface import VectorIndex
from serving.index.meta import META_FILE, read_meta
from towers.bundle import Bundle
from towers.errors import BundleError

_OPENERS: dict[str, Callable[[Bundle], VectorIndex]] = {"exact": ExactIndex.open, "ivf": FaissIndex.open}


def open_index(bundle: Bundle) -> VectorIndex:
    """The bundle's index; the exact scan for a bundle that was exported and not indexed.

    Raises:
        BundleError: the index is damaged, belongs to other item vectors, or is of an unknown kind.
    """
    if not bundle.has(META_FILE):
        return ExactIndex.open(bundle)
    kind = read_meta(bundle).kind
    if kind not in _OPENERS:
        raise BundleError(
            f"bundle {bundle.folder} has a {kind!r} index, this version reads {', '.join(_OPENERS)}; run `towers index` again"
        )
    return _OPENERS[kind](bundle)
