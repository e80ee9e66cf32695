"""The folder format of the LightGCN family: train.txt, test.txt and perhaps valid.txt, one `user item item ...` a line.

The split is given and has no order. In the published Gowalla split valid.txt lies inside train.txt, so its pairs are taken out of
training here; refit on train and valid together before testing.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from towers import columns as c
from towers.errors import DataError
from training.data_config import DataConfig, schema_of
from training.sources.base import SourceTables, empty_table, interactions_of, require_file, require_folder

_FILES: Final = {"train": "train.txt", "valid": "valid.txt", "test": "test.txt"}
_LOOKED_AT: Final = 1000
_TELLING: Final = 20
"""Lines of a file that are looked at, and fewest that tell its layout."""


def open_lightgcn(data: DataConfig) -> SourceTables:
    """Open a folder with train.txt, test.txt and perhaps valid.txt.

    Raises:
        DataError: the folder or a file is missing, or the files hold `user item value` lines.
    """
    folder = require_folder(data, "gowalla", "train.txt and test.txt (one `user item item ...` a line), and valid.txt if there is one")
    for name in ("train", "test"):
        refuse_values(require_file(folder, _FILES[name], "lightgcn"))
    schema = schema_of(data)
    valid = _pairs(folder / _FILES["valid"]) if (folder / _FILES["valid"]).is_file() else set()

    def interactions() -> Iterator[pa.Table]:
        for name in ("train", "valid", "test"):
            if name != "valid" or valid:
                yield from _chunks(folder / _FILES[name], name, valid if name == "train" else set(), data.chunk_rows)

    notes = {"protocol": "given split, no order; choose on valid, refit on train and valid, test once"}
    if valid:
        notes |= _count(folder, valid)
    return SourceTables(
        name="lightgcn",
        schema=schema,
        interactions=interactions,
        items=empty_table(schema, "item", "lightgcn has no item table"),
        users=empty_table(schema, "user", "lightgcn has no user table"),
        notes=notes,
    )


def lines_of(path: Path) -> Iterator[tuple[str, list[str]]]:
    """(first word, the other words) of each line that is not blank."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            words = line.split()
            if words:
                yield words[0], words[1:]


def refuse_values(path: Path) -> None:
    """Refuse a file of `user item value` lines, in which every value would be read as an item.

    Raises:
        DataError: its first lines all have three words, of which the last is the same throughout.
    """
    lines = list(islice(lines_of(path), _LOOKED_AT))
    third = {words[1] for _, words in lines if len(words) == 2}
    if len(lines) >= _TELLING and all(len(words) == 2 for _, words in lines) and len(third) == 1:
        raise DataError(
            f"{path}: its lines look like `user item value` (all end in {third.pop()!r}), and `user item item ...` was expected. Take the"
            " last column away (cut -d ' ' -f 1,2), or read the file with data=table"
        )


def _pairs(path: Path) -> set[tuple[str, str]]:
    return {(user, item) for user, items in lines_of(path) for item in items}


def _count(folder: Path, valid: set[tuple[str, str]]) -> dict[str, str]:
    """Both counts of the overlap, for the data card."""
    train = [(user, item) in valid for user, items in lines_of(folder / _FILES["train"]) for item in items]
    return {
        "train_rows": f"{len(train):,} in train.txt, {len(train) - sum(train):,} after taking out valid.txt",
        "valid_rows": f"{len(valid):,} in valid.txt, {sum(train):,} of them inside train.txt",
    }


def _chunks(path: Path, split: str, without: set[tuple[str, str]], chunk_rows: int) -> Iterator[pa.Table]:
    users: list[str] = []
    items: list[str] = []
    for user, line in lines_of(path):
        kept = [item for item in line if (user, item) not in without] if without else line
        users += [user] * len(kept)
        items += kept
        while len(items) >= chunk_rows:
            yield _table(users[:chunk_rows], items[:chunk_rows], split)
            del users[:chunk_rows], items[:chunk_rows]
    yield _table(users, items, split)


def _table(users: list[str], items: list[str], split: str) -> pa.Table:
    return interactions_of({c.USER_ID: users, c.ITEM_ID: items, c.SPLIT: np.full(len(items), split).tolist()})
