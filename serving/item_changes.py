"""Items put and taken down since the bundle was made: durable, shared by processes, folded into the catalogue by `towers index`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from serving.bounds import Limits, check_value
from serving.database import ANSWER_S, Database, kept
from serving.decoding import check_id, microseconds
from towers.bundle import Bundle
from towers.columns import CATEGORIES, CREATED_AT, IS_HIDDEN, ITEM_ID, TITLE
from towers.errors import RequestError
from towers.preprocess import Preprocessor
from towers.schema import Feature
from towers.values import as_dense, as_lists, as_numbers, as_strings, as_times

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS items (item_id TEXT PRIMARY KEY, attributes TEXT, generation INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE UNIQUE INDEX IF NOT EXISTS items_by_generation ON items (generation)",
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "INSERT OR IGNORE INTO facts VALUES ('name', lower(hex(randomblob(8))))",
)
_LOST = "SELECT coalesce(max(value), 0) FROM facts WHERE name = 'lost'"
_PUT = f"""INSERT INTO items SELECT ?, ?, max(coalesce(max(generation), 0), ({_LOST})) + 1 FROM items WHERE true
    ON CONFLICT (item_id) DO UPDATE SET attributes = excluded.attributes, generation = excluded.generation
    RETURNING generation"""

Attributes = Mapping[str, Any]

ITEMS_FILE = "items.db"
"""Its name in the service's state_dir."""
IN_BUNDLE = "item_changes"
"""Key, in a bundle's manifest, of the file (name) and the generation up to which its catalogue holds the changes."""


@dataclass(frozen=True, slots=True)
class ItemChange:
    """The last change of an item.

    Attributes:
        attributes: as they were put; None = it was taken down.
        generation: number of the change; later ones are higher.
    """

    item_id: str
    attributes: Attributes | None
    generation: int


class ItemChanges:
    """The last change of each item, in one SQLite file; kept when a method returns.

    Attributes:
        name: of this file among all others; generations of two files cannot be compared.

    Raises:
        DataError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        with kept(Database(path, _SCHEMA)) as self._database:
            ((name,),) = self._database.read("SELECT value FROM facts WHERE name = 'name'")
            self.name = str(name)
            self._database.wait_at_most(ANSWER_S)

    def put(self, item_id: str, attributes: Attributes | None) -> int:
        """Note that an item is new or other than it was, or (None) that it is taken down; the generation of the change."""
        told = None if attributes is None else msgspec.json.encode(attributes).decode()
        with self._database.transaction() as connection:
            ((generation,),) = connection.execute(_PUT, (item_id, told)).fetchall()  # its own: others put items meanwhile
        return int(generation)

    def generation(self) -> int:
        """Number of the last change; 0 where there was none."""
        ((last,),) = self._database.read("SELECT coalesce(max(generation), 0) FROM items")
        return int(str(last))

    def since(self, generation: int) -> list[ItemChange]:
        """Changes after a generation, oldest first."""
        rows = self._database.read(
            "SELECT item_id, attributes, generation FROM items WHERE generation > ? ORDER BY generation", (generation,)
        )
        return [
            ItemChange(str(item), None if told is None else msgspec.json.decode(str(told)), int(str(place))) for item, told, place in rows
        ]

    def lost(self) -> int:
        """Up to which number changes were lost: the file is a backup that was put back; 0 where none were."""
        ((last,),) = self._database.read(_LOST)
        return int(str(last))

    def go_on_from(self, generation: int) -> None:
        """Give no later change a number up to this one, which a bundle names: it would pass for one that the bundle holds."""
        if generation > max(self.generation(), self.lost()):
            with self._database.transaction() as connection:
                connection.execute("INSERT OR REPLACE INTO facts VALUES ('lost', ?)", (generation,))

    def held(self, bundle: Bundle) -> int:
        """Generation of the last change that a bundle's catalogue holds already; 0 where it holds none of this file's."""
        found = bundle.manifest.get(IN_BUNDLE) or {}
        return int(found["generation"]) if found.get("name") == self.name else 0

    def close(self) -> None:
        """Release the file."""
        self._database.close()


def check_item(item_id: str, attributes: Attributes, preprocessor: Preprocessor, limits: Limits | None = None) -> None:
    """Whether an item can be encoded, shown and filtered.

    Args:
        limits: of one request; None = of an item that was taken already.

    Raises:
        RequestError: names the attribute at fault.
    """
    check_id("id", item_id)
    known = known_attributes(preprocessor)
    for name, value in attributes.items():
        if name not in known:
            raise RequestError(f"attributes.{name[:60]}", f"no declared attribute of items; expected {', '.join(known)}")
        wanted = known[name]
        if limits is not None:
            check_value(f"attributes.{name}", value, limits, wanted.width if isinstance(wanted, Feature) else 0)
        try:
            _typed(wanted, name, [value])
        except RequestError as error:
            raise RequestError(f"attributes.{name}", error.message) from None


def item_table(items: Mapping[str, Attributes], schema: pa.Schema, preprocessor: Preprocessor) -> pa.Table:
    """Checked items as rows of a catalogue, in ascending order of their ids' bytes.

    Args:
        items: attributes by id.
        schema: of the catalogue; columns that nobody can put (train_count) are 0 or null.
    """
    ids = sorted(items, key=str.encode)
    known = known_attributes(preprocessor)
    columns = {}
    for field in schema:
        if field.name == ITEM_ID:
            values: Any = ids
        elif field.name in known:
            values = _typed(known[field.name], field.name, [items[item].get(field.name) for item in ids])
        else:
            values = [0 if pa.types.is_integer(field.type) else None] * len(ids)
        columns[field.name] = pa.array(values, field.type)
    return pa.table(columns, schema=pa.schema(list(schema)))


def item_columns(table: pa.Table, preprocessor: Preprocessor) -> dict[str, Any]:
    """What the item tower reads of a catalogue's rows."""
    return {f.name: table.column(f.name) for f in preprocessor.schema.owned_by("item") if f.name in table.column_names}


_FIXED: dict[str, str] = {TITLE: "text", CATEGORIES: "multi_categorical", CREATED_AT: "time", IS_HIDDEN: "bool"}


def known_attributes(preprocessor: Preprocessor) -> dict[str, str | Feature]:
    """Kind, or declared feature, of each attribute that an item may have."""
    return {**_FIXED, **{f.name: f for f in preprocessor.schema.owned_by("item") if f.name != ITEM_ID}}


def _typed(wanted: str | Feature, name: str, values: list[Any]) -> list[Any]:
    """Values as a catalogue's column holds them; raises RequestError."""
    kind = wanted if isinstance(wanted, str) else wanted.kind
    _check_type(name if name == CATEGORIES else kind, name, values)
    if kind == "time":
        return [None if value is None else _moment(name, value) for value in values]
    if kind == "bool":
        return [bool(value) for value in values]
    if kind == "multi_categorical":
        flat, lengths = as_lists(name, values)
        _check_text(name, flat)
        ends = lengths.cumsum().tolist()
        lists = [flat[end - length : end] for end, length in zip(ends, lengths.tolist(), strict=True)]
        return [None if value is None else row for value, row in zip(values, lists, strict=True)]
    if kind == "numeric":
        return [None if number != number else number for number in as_numbers(name, values).tolist()]
    if kind == "dense" and isinstance(wanted, Feature):
        vectors = as_dense(name, values, wanted.width).tolist()
        return [None if value is None else vector for value, vector in zip(values, vectors, strict=True)]
    texts = as_strings(name, values)
    _check_text(name, texts)
    return list(texts)


_TYPES: dict[str, tuple[tuple[type, ...], tuple[type, ...], str]] = {
    "text": ((str,), (), "text"),
    CATEGORIES: ((), (str,), "a list of text"),
    "time": ((str, int, float), (), "Unix seconds or RFC 3339 text"),
    "bool": ((bool,), (), "true or false"),
    "numeric": ((int, float, bool), (), "a number"),
    "dense": ((), (int, float), "a list of numbers"),
}
"""By kind, and of categories: what a value may be, what each entry of a list may be, and how that is said. Values of other kinds are what
their column in a log may hold: 5, "5" and 5.0 are one."""


def _check_type(kind: str, name: str, values: list[Any]) -> None:
    """Raises RequestError where a value had to be turned into another type to fit."""
    single, entry, expected = _TYPES.get(kind, ((), (), ""))
    for value in values if expected else ():
        fits = all(type(one) in entry for one in value) if isinstance(value, list) and entry else type(value) in single
        if value is not None and not fits:
            raise RequestError(name, f"got {repr(value)[:60]}, expected {expected}")


def _moment(name: str, value: Any) -> int:
    """Unix seconds or RFC 3339 text, as everywhere in requests."""
    if not isinstance(value, str):
        return microseconds(name, value)
    if value.isdecimal():  # of which a date of another spelling would be made
        raise RequestError(name, f"got {value[:60]!r}, expected RFC 3339 text, or Unix seconds as a number")
    return int(as_times(name, [value])[0])


def _check_text(name: str, texts: list[str | None]) -> None:
    if not all(_is_text(text) for text in texts if text):
        raise RequestError(name, "expected text that can be written as UTF-8")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
