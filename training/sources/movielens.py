"""MovieLens in the publisher's own files, whichever of its sets, and 1M and 100K from the publisher where no folder is given.

F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015. Research use; no redistribution.
Gender, age, occupation and zip code go to the audit table: a feature may use one only if it is declared sensitive with a purpose.

Nobody told MovieLens what he likes, so the user column `preferences` is a simulation of it: the genres that stand most often on the films
a user rated 4 or 5 among the first DECLARING ratings. Where it is declared as a feature these ratings have weight 0: they are history, but
nothing is trained or measured on what the declaration was drawn from.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from towers import columns as c
from training.data_config import DataConfig, schema_of
from training.sources.base import TIME, SourceTables, chunks, find_folder, interactions_of, side_table
from training.sources.download import Archive, cache_dir, fetch
from training.sources.movielens_files import Columns, read_published

ML_1M: Final = Archive(
    folder="ml-1m",
    url="https://files.grouplens.org/datasets/movielens/ml-1m.zip",
    sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    holds=("ratings.dat", "movies.dat", "users.dat"),
)
ML_100K: Final = Archive(
    folder="ml-100k",
    url="https://files.grouplens.org/datasets/movielens/ml-100k.zip",
    sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    holds=("u.data", "u.item", "u.genre", "u.user"),
)
PREFERENCES: Final = "preferences"
DECLARING, LIKED, MOST_GENRES = 10, 4.0, 3
"""First ratings that a simulated declaration is drawn from, the least rating of a film that is liked, and genres told at most."""
_YEAR: Final = re.compile(r"\((\d{4})\)\s*$")


def open_ml_1m(data: DataConfig) -> SourceTables:
    """MovieLens in any of the publisher's layouts (`movielens_files`); 1M where no folder is given.

    Raises:
        DataError: the folder, a file or a line of it is not as published, or it cannot be downloaded.
    """
    return _open(data, ML_1M)


def open_ml_100k(data: DataConfig) -> SourceTables:
    """The same; 100K where no folder is given.

    Raises:
        DataError: the folder, a file or a line of it is not as published, or it cannot be downloaded.
    """
    return _open(data, ML_100K)


def _open(data: DataConfig, archive: Archive) -> SourceTables:
    schema = schema_of(data)
    folder = _locate(data, archive)
    ratings, movies, people = read_published(folder, data.name)
    told: dict[str, Any] = {}
    columns = {
        c.USER_ID: ratings["user_id"],
        c.ITEM_ID: ratings["item_id"],
        c.TIMESTAMP: ratings["timestamp"].cast(pa.timestamp("s", "UTC")).cast(TIME),
        c.VALUE: ratings["value"],
    }
    if any(f.source_column == PREFERENCES for f in schema.owned_by("user")):
        first_N = _first_ratings(ratings["user_id"], ratings["timestamp"])
        columns[c.WEIGHT] = pa.array(np.where(first_N, 0.0, 1.0))
        liked_N = first_N & (ratings["value"].to_numpy() >= LIKED)
        told = {PREFERENCES: _declared(_list(people[c.USER_ID]), ratings, liked_N, movies)}
    log = interactions_of(columns)

    def interactions() -> Iterator[pa.Table]:
        return chunks(log, data.chunk_rows)

    found = [_YEAR.search(title) for title in _list(movies[c.TITLE])]
    years = [int(match[1]) if match else None for match in found]
    known = people.keys() > {c.USER_ID}
    return SourceTables(
        name=data.name,
        schema=schema,
        interactions=interactions,
        items=side_table(schema, "item", {**movies, "year": years}, f"{folder.name} movies"),
        users=side_table(schema, "user", {**people, **told}, f"{folder.name} users"),
        audit=pa.table({name: pa.array(_list(column)) for name, column in people.items()}) if known else None,
        notes={
            "url": archive.url if folder.name == archive.folder else "https://grouplens.org/datasets/movielens/",
            "licence": "GroupLens: research use, no redistribution, cite Harper and Konstan 2015",
            "order": "by time, ties in the order of the file: half of the timestamps tie",
            **({} if known else {"audit": "nothing is published about people in this set"}),
        },
    )


def _first_ratings(users: pa.ChunkedArray, seconds: pa.ChunkedArray) -> NDArray[np.bool_]:
    """bool [N]: the first DECLARING ratings of each user, ties in the order of the file."""
    code_N = users.combine_chunks().dictionary_encode().indices.to_numpy()
    order = np.lexsort((seconds.to_numpy(), code_N))
    starts = np.searchsorted(code_N[order], np.arange(code_N.max(initial=-1) + 1))
    first_N = np.zeros(len(order), bool)
    first_N[order] = np.arange(len(order)) - starts[code_N[order]] < DECLARING
    return first_N


def _declared(users: Sequence[str], ratings: pa.Table, liked_N: NDArray[np.bool_], movies: Columns) -> list[list[str]]:
    """The genres told by each user: most often met first, equal ones by name."""
    genres = dict(zip(_list(movies[c.ITEM_ID]), _list(movies[c.CATEGORIES]), strict=True))
    counts: dict[str, Counter[str]] = {}
    liked = ratings.filter(pa.array(liked_N))
    for user, item in zip(liked["user_id"].to_pylist(), liked["item_id"].to_pylist(), strict=True):
        counts.setdefault(user, Counter()).update(genres.get(item, ()))
    by_count = {user: sorted(met, key=lambda genre: (-met[genre], genre)) for user, met in counts.items()}
    return [by_count.get(user, [])[:MOST_GENRES] for user in users]


def _list(column: Sequence[Any] | pa.ChunkedArray) -> Sequence[Any]:
    return column.to_pylist() if isinstance(column, pa.ChunkedArray) else column


def _locate(data: DataConfig, archive: Archive) -> Path:
    return find_folder(data, archive.folder) or fetch(archive, cache_dir())
