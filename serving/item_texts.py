"""What replies say about items, as JSON made when a catalogue is indexed: a list of a hundred is a hundred pieces put together."""

import re
from collections.abc import Iterator, Sequence
from typing import overload

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.messages import Item
from towers.columns import CATEGORIES, ITEM_ID, TITLE

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(list[Item])
_STRINGS = msgspec.json.Decoder(list[str])
_NO_TITLE = (b"null", b'""')
_NAMES = {b"\x01": b'},{"item_id":', b"\x02": b',"title":', b"\x03": b',"categories":', b"\x04": b',"score":'}
"""Names of fields are put in when a list is: they would be half of a catalogue's texts. No JSON holds these bytes."""
_ID, _TITLE, _CATEGORIES, _SCORE = _NAMES
_EXPLANATION = b"\x05"
_IDS = re.compile(rb"\x01([^\x02]*)\x02")


class Items(Sequence[Item]):
    """The items of a list, best first. Sent as the JSON they are; objects are made where somebody looks at them.

    Args:
        texts: of `item_texts`, one an item.
        scores: of each.
        explanations: JSON of the first items' explanations, in pieces; the others have none.

    Attributes:
        json: of the list, as it is sent.
        ids_json, scores_json: lists of the items' ids and scores alone.
    """

    __slots__ = ("_count", "_made", "_marked", "json", "scores_json")

    def __init__(self, texts: Sequence[memoryview], scores: NDArray[np.floating], explanations: Sequence[Sequence[bytes]] = ()) -> None:
        self.scores_json = _ENCODER.encode(scores.tolist())
        self._made: list[Item] | None = None
        self._count = len(texts)
        parts: list[bytes | memoryview] = [b""] * (2 * len(texts))
        if texts:
            parts[::2], parts[1::2] = texts, self.scores_json[1:-1].split(b",")
        for place in range(1, 2 * min(len(texts), len(explanations)), 2):
            parts[place] = b"".join((parts[place], _EXPLANATION))
        self._marked = text = b"".join(parts)
        for mark, name in _NAMES.items():
            text = text.replace(mark, name)
        if explanations:  # last, so that nobody looks for marks in them: they are the most of a reply
            whole: list[bytes] = []
            first, *others = text.split(_EXPLANATION)
            for before, one in zip((first, *others), explanations, strict=False):
                whole += (before, b',"explanation":', *one)
            text = b"".join((*whole, others[-1]))
        self.json = b"[%b}]" % text[2:] if texts else b"[]"

    @property
    def ids_json(self) -> bytes:
        return b"[%b]" % b",".join(_IDS.findall(self._marked))

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> list[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | list[Item]:
        return self._items[place]

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._items == list(other)

    def __repr__(self) -> str:
        return repr(self._items)

    @property
    def _items(self) -> list[Item]:
        if self._made is None:
            self._made = _DECODER.decode(self.json)
        return self._made


def as_json(value: object) -> msgspec.Raw:
    """For encoders, which do not know `Items`."""
    if isinstance(value, Items):
        return msgspec.Raw(value.json)
    raise TypeError(f"{type(value).__name__} has no JSON")


def ids_of(items: Sequence[Item]) -> list[str] | msgspec.Raw:
    """Ids of a list's items, for an encoder."""
    return msgspec.Raw(items.ids_json) if isinstance(items, Items) else [item.item_id for item in items]


def scores_of(items: Sequence[Item]) -> list[float] | msgspec.Raw:
    """Scores of a list's items, for an encoder."""
    return msgspec.Raw(items.scores_json) if isinstance(items, Items) else [item.score for item in items]


class Texts:
    """Texts of a catalogue by row, read where they are mapped: a call of Arrow for a hundred costs more than the hundred.

    Args:
        array: of `item_texts`.
    """

    def __init__(self, array: pa.LargeBinaryArray) -> None:
        _, ends, content = array.buffers()
        self._ends = np.frombuffer(ends, np.int64)[array.offset : array.offset + len(array) + 1] if len(array) else np.zeros(1, np.int64)
        self._content = memoryview(content if content is not None else b"")

    def __len__(self) -> int:
        return len(self._ends) - 1

    def of(self, rows: NDArray[np.integer]) -> list[memoryview]:
        """In the order given."""
        content = self._content
        return [content[start:stop] for start, stop in zip(self._ends[rows].tolist(), self._ends[rows + 1].tolist(), strict=True)]


def pointers(texts: Sequence[memoryview]) -> tuple[list[bytes], list[str]]:
    """What points at items from elsewhere in a reply, by their texts: `"item_id":...` and, where there is one, `,"title":...`; and what
    each is called: its title, or else its id."""
    pieces, called = [], []
    for text in map(bytes, texts):
        at = text.index(_TITLE)
        item_id, title = text[len(_ID) : at], text[at + len(_TITLE) : text.index(_CATEGORIES)]
        pieces.append(b'"item_id":%b' % item_id if title == b"null" else b'"item_id":%b,"title":%b' % (item_id, title))
        called.append(item_id if title in _NO_TITLE else title)
    return pieces, _STRINGS.decode(b"[%b]" % b",".join(called))


def item_texts(catalog: pa.Table) -> pa.LargeBinaryArray:
    """JSON of each item of a catalogue up to where its score follows, with marks for the names of fields."""
    encode = _ENCODER.encode
    columns = (catalog.column(name).to_pylist() for name in (ITEM_ID, TITLE, CATEGORIES))
    texts = [
        b"".join((_ID, encode(item_id), _TITLE, encode(title), _CATEGORIES, encode(labels or []), _SCORE))
        for item_id, title, labels in zip(*columns, strict=True)
    ]
    return pa.array(texts, pa.large_binary())
