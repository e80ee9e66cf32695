"""index.json, the part of a bundle that says what its index is."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from towers.bundle import Bundle
from towers.errors import BundleError

META_FILE = "index.json"
FAISS_FILE = "index.faiss"
VECTORS_FILE = "item_vectors.arrow"


@dataclass(frozen=True)
class CurvePoint:
    """One setting as measured when the index was tuned.

    Attributes:
        nprobe: lists visited; 0 for the exact scan.
        recall: share of the exact top-k returned, a mean over held-out users.
        search_us: median microseconds of one search, one thread.
    """

    nprobe: int
    recall: float
    search_us: float


@dataclass(frozen=True)
class IndexMeta:
    """What index.json holds.

    Attributes:
        kind, factory, metric, rows, dim, nlist, nprobe: see `IndexStats`.
        item_vectors_sha256: of the item vectors it was built from; an index and a model that do not belong together are refused.
        largest_norm: of the item vectors.
        k, queries: the recall is of the top k, over so many held-out users (0 for `exact`, which is not judged).
        recall, recall_floor: reached at `nprobe`, and asked for.
        search_us, exact_us: median of one search, and of the exact scan of the same queries.
        curve: every setting measured.
    """

    kind: str
    factory: str
    metric: str
    rows: int
    dim: int
    nlist: int
    nprobe: int
    item_vectors_sha256: str
    largest_norm: float
    k: int
    queries: int
    recall: float
    recall_floor: float
    search_us: float
    exact_us: float
    curve: tuple[CurvePoint, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "IndexMeta":
        known = {field.name: raw[field.name] for field in fields(cls)}
        return cls(**{**known, "curve": tuple(CurvePoint(**point) for point in raw["curve"])})


def vectors_sha256(bundle: Bundle) -> str:
    """Checksum of the bundle's item vectors, as `Bundle.open` has verified it: the model's fingerprint."""
    bundle.path(VECTORS_FILE)
    return str(bundle.manifest["files"][VECTORS_FILE]["sha256"])


def read_meta(bundle: Bundle) -> IndexMeta:
    """The bundle's index.json.

    Raises:
        BundleError: it is missing, unreadable, or of an index over other vectors.
    """
    path = bundle.path(META_FILE)
    try:
        meta = IndexMeta.from_json(json.loads(path.read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} is not an index description ({error!r}); build the index again: towers index") from error
    found = vectors_sha256(bundle)
    if meta.item_vectors_sha256 != found:
        raise BundleError(
            f"{path} is of an index over item vectors {meta.item_vectors_sha256[:12]}, the bundle's are {found[:12]}: index and model do"
            " not belong together. Build the index again: towers index"
        )
    return meta
