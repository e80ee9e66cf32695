"""index.json, the part of a bundle that says what its index is."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from towers.bundle import Bundle
from towers.errors import BundleError
from towers.pointers import INDEX_FILE

META_FILE = INDEX_FILE
FAISS_FILE = "index.faiss"
ROTATION_FILE = "rotation.npy"
VECTORS_FILE = "item_vectors.arrow"


@dataclass(frozen=True)
class Setting:
    """How wide a search is.

    Attributes:
        nprobe: lists visited; 0 where there are none.
        candidates: items rescored exactly; efSearch of a graph.
    """

    nprobe: int
    candidates: int


@dataclass(frozen=True)
class CurvePoint:
    """One setting as measured when the index was tuned.

    Attributes:
        nprobe, candidates: see `Setting`.
        recall: share of the exact top-k returned, a mean over held-out users.
        search_us: microseconds of processor time of one search, one thread.
        factory, metric: of the index that it is a setting of.
    """

    nprobe: int
    recall: float
    search_us: float
    factory: str = ""
    metric: str = "inner_product"
    candidates: int = 0


@dataclass(frozen=True)
class PartMeta:
    """An index of the items that have one declared value.

    Attributes:
        key: `<attribute>/<value's place>`.
        file: its FAISS part in the bundle.
        factory, rows, nlist, nprobe, candidates: as in `IndexMeta`.
        recall: reached on held-out users, against the exact top-k of these items.
    """

    key: str
    file: str
    factory: str
    rows: int
    nlist: int
    nprobe: int
    candidates: int
    recall: float


@dataclass(frozen=True)
class IndexMeta:
    """What index.json holds.

    Attributes:
        kind, factory, metric, rows, dim, nlist, nprobe, candidates: see `IndexStats`.
        item_vectors_sha256: of the item vectors it was built from; an index and a model that do not belong together are refused.
        largest_norm: of the item vectors.
        k, queries: the recall is of the top k, over so many held-out queries (0 for `exact`, which is not judged).
        recall, recall_floor: reached as it is set, and asked for.
        search_us, exact_us: processor time of one search, and of the exact scan of the same queries.
        curve: every setting measured of every index that was tried.
        parts: indexes of declared values.
        margin: of an `ivf` index, see `list_margin`; None for others, and where it was made before there was one.
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
    candidates: int = 0
    parts: tuple[PartMeta, ...] = ()
    margin: float | None = None

    @property
    def setting(self) -> Setting:
        return Setting(self.nprobe, self.candidates)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "IndexMeta":
        known = {field.name: raw[field.name] for field in fields(cls) if field.name in raw or field.default is MISSING}
        curve = tuple(CurvePoint(**point) for point in raw["curve"])
        return cls(**{**known, "curve": curve, "parts": tuple(PartMeta(**part) for part in raw.get("parts", ()))})


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
