"""MovieLens 1M and 100K in the publisher's own files (latin-1, no header), and from the publisher where no folder is given.

F. M. Harper and J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015. Research use; no redistribution.
Gender, age, occupation and zip code go to the audit table: a feature may use one only if it is declared sensitive with a purpose.

Nobody told MovieLens what he likes, so the user column `preferences` is a simulation of it: the genres that stand most often on the films
a user rated 4 or 5 among the first DECLARING ratings. Where it is declared as a feature these ratings have weight 0: they are history, but
nothing is trained or measured on what the declaration was drawn from.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
from numpy.typing import NDArray

from towers import columns as c
from towers.errors import DataError
from training.data_config import DataConfig, schema_of
from training.sources.base import TIME, SourceTables, chunks, find_folder, interactions_of, require_file, side_table
from training.sources.download import Archive, cache_dir, fetch

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
AUDIT: Final = ("gender", "age", "occupation", "zip")
_AGES: Final = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56+"}
_JOBS: Final = (
    "other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service", "doctor/health care",
    "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer", "retired", "sales/marketing", "scientist",
    "self-employed", "technician/engineer", "tradesman/craftsman", "unemployed", "writer",
)  # fmt: skip
PREFERENCES: Final = "preferences"
DECLARING, LIKED, MOST_GENRES = 10, 4.0, 3
"""First ratings that a simulated declaration is drawn from, the least rating of a film that is liked, and genres told at most."""
_YEAR: Final = re.compile(r"\((\d{4})\)\s*$")

Columns = Mapping[str, Sequence[Any] | pa.ChunkedArray]


def open_ml_1m(data: DataConfig) -> SourceTables:
    """MovieLens 1M: ratings.dat, movies.dat and users.dat, separated by `::`.

    Raises:
        DataError: the folder, a file or a line of it is not as published, or it cannot be downloaded.
    """
    folder = _locate(data, ML_1M)
    ratings = _read(require_file(folder, "ratings.dat", "ml_1m"), ("user_id", "item_id", "value", "timestamp"), "::")
    movies = _read(require_file(folder, "movies.dat", "ml_1m"), ("item_id", "title", "genres"), "::")
    users = _read(require_file(folder, "users.dat", "ml_1m"), ("user_id", "gender", "age", "occupation", "zip"), "::")
    categories = [genres.split("|") if genres else [] for genres in movies["genres"].to_pylist()]
    people = {
        c.USER_ID: users["user_id"],
        "gender": users["gender"],
        "age": [_AGES.get(age, age) for age in users["age"].to_pylist()],
        "occupation": [_JOBS[int(job)] if job.isdigit() and int(job) < len(_JOBS) else job for job in users["occupation"].to_pylist()],
        "zip": users["zip"],
    }
    return _tables(data, ML_1M, ratings, {c.ITEM_ID: movies["item_id"], c.TITLE: movies["title"], c.CATEGORIES: categories}, people)


def open_ml_100k(data: DataConfig) -> SourceTables:
    """MovieLens 100K: u.data (tabs), u.item, u.genre and u.user (bars).

    Raises:
        DataError: the folder, a file or a line of it is not as published, or it cannot be downloaded.
    """
    folder = _locate(data, ML_100K)
    ratings = _read(require_file(folder, "u.data", "ml_100k"), ("user_id", "item_id", "value", "timestamp"), "\t")
    genres = _read(require_file(folder, "u.genre", "ml_100k"), ("genre", "number"), "|")["genre"].to_pylist()
    flags = [f"flag{g}" for g in range(len(genres))]
    movies = _read(require_file(folder, "u.item", "ml_100k"), ("item_id", "title", "released", "on_video", "url", *flags), "|")
    users = _read(require_file(folder, "u.user", "ml_100k"), ("user_id", "age", "gender", "occupation", "zip"), "|")
    marked = zip(*(movies[flag].to_pylist() for flag in flags), strict=True)
    categories = [[genre for genre, flag in zip(genres, row, strict=True) if flag == "1"] for row in marked]
    people = {c.USER_ID: users["user_id"], **{name: users[name] for name in AUDIT}}
    return _tables(data, ML_100K, ratings, {c.ITEM_ID: movies["item_id"], c.TITLE: movies["title"], c.CATEGORIES: categories}, people)


def _tables(data: DataConfig, archive: Archive, ratings: pa.Table, movies: dict[str, Any], people: dict[str, Any]) -> SourceTables:
    schema = schema_of(data)
    try:
        seconds = ratings["timestamp"].cast(pa.int64())
        values = ratings["value"].cast(pa.float64())
    except pa.ArrowInvalid as error:
        raise DataError(f"{archive.folder}: a rating or timestamp is no number ({error}). Fetch the dataset again") from error
    told: dict[str, Any] = {}
    columns = {
        c.USER_ID: ratings["user_id"],
        c.ITEM_ID: ratings["item_id"],
        c.TIMESTAMP: seconds.cast(pa.timestamp("s", "UTC")).cast(TIME),
        c.VALUE: values,
    }
    if any(f.source_column == PREFERENCES for f in schema.owned_by("user")):
        first_N = _first_ratings(ratings["user_id"], seconds)
        columns[c.WEIGHT] = pa.array(np.where(first_N, 0.0, 1.0))
        told = {PREFERENCES: _declared(people[c.USER_ID].to_pylist(), ratings, first_N & (values.to_numpy() >= LIKED), movies)}
    log = interactions_of(columns)

    def interactions() -> Iterator[pa.Table]:
        return chunks(log, data.chunk_rows)

    found = [_YEAR.search(title) for title in movies[c.TITLE].to_pylist()]
    years = [float(match[1]) if match else None for match in found]
    return SourceTables(
        name=data.name,
        schema=schema,
        interactions=interactions,
        items=side_table(schema, "item", {**movies, "year": years}, f"{archive.folder} movies"),
        users=side_table(schema, "user", {**people, **told}, f"{archive.folder} users"),
        audit=pa.table({name: pa.array(column) if isinstance(column, list) else column for name, column in people.items()}),
        notes={
            "url": archive.url,
            "licence": "GroupLens: research use, no redistribution, cite Harper and Konstan 2015",
            "order": "by time, ties in the order of the file: half of the timestamps tie",
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


def _read(path: Path, names: Sequence[str], separator: str) -> pa.Table:
    """A headerless latin-1 file as text columns; quotes are plain characters."""
    raw = path.read_bytes()
    if len(separator) > 1:  # Arrow separates by one byte
        raw = raw.replace(separator.encode(), b"\t")
    try:
        return pacsv.read_csv(
            pa.BufferReader(raw),
            read_options=pacsv.ReadOptions(column_names=list(names), encoding="latin1"),
            parse_options=pacsv.ParseOptions(delimiter=separator if len(separator) == 1 else "\t", quote_char=False),
            convert_options=pacsv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not as published, lines of {len(names)} fields separated by {separator!r} ({error})") from error
