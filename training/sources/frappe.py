"""Frappe: which app was used in which context, in the publisher's own tab-separated files; no timestamps.

L. Baltrunas, K. Church, A. Karatzoglou and N. Oliver, Frappe: Understanding the Usage and Perception of Mobile App Recommendations
In-The-Wild, arXiv:1505.03014, 2015. Research use; no redistribution.
A row is one combination of user, app and context, with the number of uses (`cnt`): a user has most apps in many rows.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from towers import columns as c
from towers.errors import DataError
from training.data_config import DataConfig, schema_of
from training.sources.base import SourceTables, chunks, empty_table, interactions_of, require_file, require_folder, side_table

CONTEXT: Final = ("daytime", "weekday", "isweekend", "homework", "weather", "country", "city")
UNKNOWN: Final = "unknown"
NO_CITY: Final = "0"
"""City names are withheld; 0 stands beside every country, so it is "not known"."""
_LOG: Final = ("user", "item", "cnt", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")
_META: Final = ("item", "category", "downloads", "developer", "language", "description", "name", "price", "rating")


def open_frappe(data: DataConfig) -> SourceTables:
    """Open a folder with frappe.csv and meta.csv.

    Context columns are `daytime`, `weekday`, `isweekend`, `homework`, `weather`, `country` and `city`, null where unknown; item columns
    `description`, `language`, `developer`, `downloads`, `price` (dollars), `rating` and `cost` (free or paid), besides title and
    categories. `cost` stands in the log, but each app has one value: as a context it would tell part of the answer.

    Raises:
        DataError: the folder, a file or a column of it is not as published.
    """
    folder = require_folder(data, "frappe", "frappe.csv and meta.csv (tab separated)")
    rows = _read(require_file(folder, "frappe.csv", "frappe"), _LOG)
    apps = _read(require_file(folder, "meta.csv", "frappe"), _META)
    schema = schema_of(data)
    try:
        uses = rows["cnt"].cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise DataError(f"{folder / 'frappe.csv'}: column 'cnt' is no number ({error}). Fetch the dataset again") from error
    known = {name: _known(rows[name], NO_CITY if name == "city" else UNKNOWN) for name in CONTEXT}
    log = interactions_of({c.USER_ID: rows["user"], c.ITEM_ID: rows["item"], c.VALUE: uses, **known})
    cost = dict(zip(rows["item"].to_pylist(), rows["cost"].to_pylist(), strict=True))
    items = {
        c.ITEM_ID: apps["item"],
        c.TITLE: _known(apps["name"]),
        c.CATEGORIES: [[] if name == UNKNOWN else [name] for name in apps["category"].to_pylist()],
        **{name: _known(apps[name]) for name in ("description", "language", "developer", "downloads")},
        "price": [_dollars(text) for text in apps["price"].to_pylist()],
        "rating": [_number(text) for text in apps["rating"].to_pylist()],
        "cost": [cost.get(item) for item in apps["item"].to_pylist()],
    }

    def interactions() -> Iterator[pa.Table]:
        return chunks(log, data.chunk_rows)

    return SourceTables(
        name="frappe",
        schema=schema,
        interactions=interactions,
        items=side_table(schema, "item", items, "frappe apps"),
        users=empty_table(schema, "user", "frappe has no user table"),
        notes={
            "paper": "Baltrunas et al. 2015, arXiv:1505.03014",
            "licence": "research use, no redistribution, cite the paper",
            "rows": "one a combination of user, app and context; value = number of uses; a user has most apps in several rows",
            "cost": "an item column: each app has one value, so as a context it would tell part of the answer",
        },
    )


def _read(path: Path, needed: tuple[str, ...]) -> pa.Table:
    """A tab-separated file as text columns; quotes are plain characters."""
    try:
        table = pacsv.read_csv(
            path,
            parse_options=pacsv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=pacsv.ConvertOptions(
                column_types={name: pa.string() for name in needed}, strings_can_be_null=False, include_columns=list(needed)
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise DataError(f"{path}: not as published, tab-separated with the columns {', '.join(needed)} ({error})") from error
    return table


def _known(values: pa.ChunkedArray, unknown: str = UNKNOWN) -> pa.ChunkedArray:
    """The values with null where they say that they are not known."""
    return pc.if_else(pc.equal(values, unknown), pa.scalar(None, pa.string()), values)


def _dollars(text: str) -> float | None:
    """`$2.99` as 2.99, `Free` as 0; other currencies and unknown prices have no value."""
    return 0.0 if text == "Free" else _number(text[1:]) if text.startswith("$") else None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
