"""Rows whose time is over, in files whose names do not tell: lists with what people did with them, and events by their own time.

An event may be told long after it happened. It lies in the folder of the hour in which it came, with others that may stay longer.
"""

import contextlib
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from towers.columns import TIMESTAMP
from towers.partitions import parts, remove_part, replace_part

FEEDBACK = "feedback"
"""Folder of the run in which `towers feedback` writes."""


def age_feedback(folder: Path, before: int) -> int:
    """Delete the files of which every list was shown before a moment (microseconds UTC); how many. One that cannot be read goes when it was
    written before."""
    gone = 0
    for path in sorted(folder.glob("part-*.parquet")):
        with contextlib.suppress(FileNotFoundError):  # written anew meanwhile
            times = _times(path)
            newest = path.stat().st_mtime_ns // 1000 if times is None else times[1]
            if newest < before:
                path.unlink()
                gone += 1
    return gone


def age_events(root: Path, before: int) -> int:
    """Take events of before a moment (microseconds UTC) out of the files of a log; how many. Files that cannot be read stay until their
    hour is over."""
    gone = 0
    for path in parts(root):
        times = _times(path)
        if times is None or times[0] >= before:
            continue
        with contextlib.suppress(FileNotFoundError, pa.ArrowException):
            with pq.ParquetFile(path) as file:
                table = file.read()
            left = table.filter(pc.greater_equal(table.column(TIMESTAMP).cast(pa.int64()), before))
            gone += len(table) - len(left)
            if len(left):
                replace_part(path, left)
            else:
                remove_part(path)
    return gone


def _times(path: Path) -> tuple[int, int] | None:
    """The first and the last time of a file, microseconds UTC; None where it cannot be read or does not tell."""
    try:
        facts = pq.read_metadata(path)
        place = facts.schema.names.index(TIMESTAMP)
        groups = [facts.row_group(number).column(place).statistics for number in range(facts.num_row_groups)]
        found = [(group.min_raw, group.max_raw) for group in groups if group is not None and group.has_min_max]
    except (OSError, ValueError, pa.ArrowException):
        return None
    if not found or len(found) < len(groups):
        return None
    return min(first for first, _ in found), max(last for _, last in found)
