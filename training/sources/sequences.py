"""Ordered histories without times: one `*.txt`, a line `user item item ...` each, and `*_item2attributes.json` if there.

The format of the S3-Rec family of Amazon sets. Order is the position in the line; timestamps are null.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from towers import columns as c
from towers.errors import DataError
from towers.schema import Schema
from training.data_config import DataConfig, schema_of
from training.sources.base import SourceTables, empty_table, find_file, interactions_of, require_folder, side_table
from training.sources.lightgcn import lines_of, refuse_values

ATTRIBUTES = "attributes"
_ATTRIBUTES_END = "_item2attributes.json"
_SAMPLED = "_sample"


def open_sequences(data: DataConfig) -> SourceTables:
    """Open the only `*.txt` of a folder, or the text that data.path names; item attributes become the multi_categorical column
    `attributes`. `*_sample.txt`, the negatives that others rank against, is passed over.

    Raises:
        DataError: no or several text files, or attributes that cannot be read.
    """
    path = _text(data)
    extra = _attributes_of(path)
    refuse_values(path)
    schema = schema_of(data)

    def interactions() -> Iterator[pa.Table]:
        return _chunks(path, data.chunk_rows)

    return SourceTables(
        name="sequences",
        schema=schema,
        interactions=interactions,
        items=_items(schema, extra),
        users=empty_table(schema, "user", "sequences has no user table"),
        notes={"file": path.name, "order": "position in the line, no times", "attributes": extra.name if extra else "none"},
    )


def _text(data: DataConfig) -> Path:
    if data.path and (named := find_file(data.path)):
        return named
    folder = require_folder(data, "amazon-beauty", "one *.txt (one `user item item ...` a line, in order)")
    texts = sorted(path for path in folder.glob("*.txt") if not path.stem.endswith(_SAMPLED))
    if len(texts) != 1:
        found = ", ".join(p.name for p in texts) or "none"
        raise DataError(f"{folder}: expected exactly one *.txt, found {found}. Check data.path, which may also name the file itself")
    return texts[0]


def _attributes_of(text: Path) -> Path | None:
    """The attributes named like the text; of a folder with one text, the only ones there."""
    own = text.with_name(f"{text.stem}{_ATTRIBUTES_END}")
    if own.is_file():
        return own
    others = {path.stem for path in text.parent.glob("*.txt") if not path.stem.endswith(_SAMPLED)} - {text.stem}
    extras = [path for path in sorted(text.parent.glob(f"*{_ATTRIBUTES_END}")) if path.name.removesuffix(_ATTRIBUTES_END) not in others]
    if len(extras) > 1:
        names = ", ".join(p.name for p in extras)
        raise DataError(f"{text.parent}: expected at most one *{_ATTRIBUTES_END}, found {names}. Keep the one that belongs to {text.name}")
    return extras[0] if extras else None


def _items(schema: Schema, path: Path | None) -> pa.Table:
    if path is None:
        return empty_table(schema, "item", "no *_item2attributes.json here", (ATTRIBUTES,))
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        values = [[str(value) for value in attributes] for attributes in raw.values()]
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: expected a JSON object of item -> list of attributes ({error})") from error
    return side_table(schema, "item", {c.ITEM_ID: list(raw), ATTRIBUTES: pa.array(values, pa.list_(pa.string()))}, path.name)


def _chunks(path: Path, chunk_rows: int) -> Iterator[pa.Table]:
    users: list[str] = []
    items: list[str] = []
    for user, line in lines_of(path):
        users += [user] * len(line)
        items += line
        while len(items) >= chunk_rows:
            yield interactions_of({c.USER_ID: users[:chunk_rows], c.ITEM_ID: items[:chunk_rows]})
            del users[:chunk_rows], items[:chunk_rows]
    yield interactions_of({c.USER_ID: users, c.ITEM_ID: items})
