"""The files in which GroupLens publishes MovieLens, and what stands in them: one set of columns, whatever the layout.

| files | sets |
|---|---|
| u.data, u.item, u.genre, u.user | 100K |
| ratings.dat, movies.dat and perhaps users.dat, fields separated by `::` | 1M (latin-1), 10M (UTF-8, nothing about people) |
| ratings.csv, movies.csv with a header (UTF-8) | 20M, 25M, 32M, latest, latest-small; nothing about people |
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from towers import columns as c
from towers.errors import DataError
from training.sources.base import require_file

AUDIT: Final = ("gender", "age", "occupation", "zip")
_RATINGS: Final = ("user_id", "item_id", "value", "timestamp")
_AGES: Final = {"1": "under 18", "18": "18-24", "25": "25-34", "35": "35-44", "45": "45-49", "50": "50-55", "56": "56+"}
_JOBS: Final = (
    "other", "academic/educator", "artist", "clerical/admin", "college/grad student", "customer service", "doctor/health care",
    "executive/managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer", "retired", "sales/marketing", "scientist",
    "self-employed", "technician/engineer", "tradesman/craftsman", "unemployed", "writer",
)  # fmt: skip
_NO_GENRES: Final = ("", "(no genres listed)")

Columns = Mapping[str, Sequence[Any] | pa.ChunkedArray]


class Published(NamedTuple):
    """A set as published.

    Attributes:
        ratings: user_id, item_id (text), value (stars) and timestamp (seconds), in the order of the file.
        movies: item_id, title, categories.
        people: user_id and the AUDIT columns where they are published, else user_id alone.
    """

    ratings: pa.Table
    movies: Columns
    people: Columns


def read_published(folder: Path, of: str) -> Published:
    """Read whichever layout the folder holds.

    Args:
        of: the dataset's name, for messages.

    Raises:
        DataError: no layout's ratings are there, or a file or a line of them is not as published.
    """
    for ratings, read in {"u.data": _tabs_and_bars, "ratings.dat": _colons, "ratings.csv": _commas}.items():
        if (folder / ratings).is_file():
            return read(folder, of)
    require_file(folder, "ratings.dat", f"{of} (or u.data, or ratings.csv)")
    raise AssertionError("require_file has raised")


def _tabs_and_bars(folder: Path, of: str) -> Published:
    ratings = _read(require_file(folder, "u.data", of), _RATINGS, "\t")
    genres = _read(require_file(folder, "u.genre", of), ("genre", "number"), "|")["genre"].to_pylist()
    flags = [f"flag{g}" for g in range(len(genres))]
    movies = _read(require_file(folder, "u.item", of), ("item_id", "title", "released", "on_video", "url", *flags), "|")
    users = _read(require_file(folder, "u.user", of), ("user_id", "age", "gender", "occupation", "zip"), "|")
    marked = zip(*(movies[flag].to_pylist() for flag in flags), strict=True)
    categories = [[genre for genre, flag in zip(genres, row, strict=True) if flag == "1"] for row in marked]
    people = {c.USER_ID: users["user_id"], **{name: users[name] for name in AUDIT}}
    return Published(_numbers(ratings, of), _movies(movies, categories), people)


def _colons(folder: Path, of: str) -> Published:
    ratings = _numbers(_read(require_file(folder, "ratings.dat", of), _RATINGS, "::"), of)
    movies = _read(require_file(folder, "movies.dat", of), ("item_id", "title", "genres"), "::")
    if not (folder / "users.dat").is_file():
        return Published(ratings, _movies(movies), _ids_alone(ratings))
    users = _read(folder / "users.dat", ("user_id", "gender", "age", "occupation", "zip"), "::")
    people = {
        c.USER_ID: users["user_id"],
        "gender": users["gender"],
        "age": [_AGES.get(age, age) for age in users["age"].to_pylist()],
        "occupation": [_JOBS[int(job)] if job.isdigit() and int(job) < len(_JOBS) else job for job in users["occupation"].to_pylist()],
        "zip": users["zip"],
    }
    return Published(ratings, _movies(movies), people)


def _commas(folder: Path, of: str) -> Published:
    ratings = _numbers(_read(require_file(folder, "ratings.csv", of), _RATINGS, ",", header="userId,movieId,rating,timestamp"), of)
    movies = _read(require_file(folder, "movies.csv", of), ("item_id", "title", "genres"), ",", header="movieId,title,genres")
    return Published(ratings, _movies(movies), _ids_alone(ratings))


def _movies(movies: pa.Table, categories: Sequence[Sequence[str]] | None = None) -> Columns:
    if categories is None:
        categories = [[] if genres in _NO_GENRES else genres.split("|") for genres in movies["genres"].to_pylist()]
    return {c.ITEM_ID: movies["item_id"], c.TITLE: movies["title"], c.CATEGORIES: categories}


def _ids_alone(ratings: pa.Table) -> Columns:
    return {c.USER_ID: pa.chunked_array([pc.unique(ratings["user_id"])])}


def _numbers(ratings: pa.Table, of: str) -> pa.Table:
    """Stars and seconds as numbers."""
    try:
        typed = {"value": ratings["value"].cast(pa.float64()), "timestamp": ratings["timestamp"].cast(pa.int64())}
    except pa.ArrowInvalid as error:
        raise DataError(f"{of}: a rating or timestamp is no number ({error}). Fetch the dataset again") from error
    return pa.table({"user_id": ratings["user_id"], "item_id": ratings["item_id"], **typed})


def _read(path: Path, names: Sequence[str], separator: str, header: str = "") -> pa.Table:
    """A file as text columns. Quotes are plain characters where there is no header, and quote titles with commas where there is one."""
    raw = path.read_bytes()
    if header:
        first = raw.partition(b"\n")[0].strip().decode("utf-8", "replace")
        if first != header:
            raise DataError(
                f"{path}: not as published, the first line is {first[:80]!r} and not {header!r}. Use data=table for other columns"
            )
    if len(separator) > 1:  # Arrow separates by one byte
        raw = raw.replace(separator.encode(), b"\t")
    try:
        return pacsv.read_csv(
            pa.BufferReader(raw),
            read_options=pacsv.ReadOptions(column_names=list(names), encoding=_encoding(raw), skip_rows=1 if header else 0),
            parse_options=pacsv.ParseOptions(delimiter=separator if len(separator) == 1 else "\t", quote_char='"' if header else False),
            convert_options=pacsv.ConvertOptions(column_types={name: pa.string() for name in names}, strings_can_be_null=False),
        )
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not as published, lines of {len(names)} fields separated by {separator!r} ({error})") from error


def _encoding(raw: bytes) -> str:
    """The older sets are latin-1, the newer ones UTF-8; what is accented in the one is not valid in the other."""
    if raw.isascii():  # ratings, which are large
        return "utf8"
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return "latin1"
    return "utf8"
