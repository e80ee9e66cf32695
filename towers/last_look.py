"""The last look at whose rows a file holds, before it takes its place: what people decided while a job ran counts for what it leaves.

A removal notes the wish first, waits a moment and then takes rows out of the files that it finds, under the lock of the service's state
(`towers.partitions.only_one`). A file that is looked through under that lock is either seen by the removal or does not hold the person.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.columns import USER_KEY
from towers.identity import KEY_BYTES
from towers.partitions import only_one
from towers.shards import writing

Allowed = Callable[[NDArray[np.uint8]], NDArray[np.bool_]]
"""Keys uint8 [n, 16] of users -> whether each may stand in the file as things are now, bool [n]."""
_BATCH_ROWS = 20_000


@contextmanager
def removals_wait(state_dir: Path) -> Iterator[None]:
    """Keep removals from looking for files until the block ends; without a service's state there are none."""
    with only_one(state_dir, wait=True) if state_dir.is_dir() else nullcontext():
        yield


class LastLook:
    """Puts Parquet files of users in their places.

    Args:
        state_dir: of the service whose removals are to be kept apart from this; without such a folder there is none.
        allowed: asked at every look.
    """

    def __init__(self, state_dir: Path, allowed: Allowed) -> None:
        self._state_dir, self._allowed = state_dir, allowed

    def place(self, temporary: Path, target: Path) -> None:
        """Rename a file that is written, without the rows of people who may not stand in it any more."""
        with removals_wait(self._state_dir):
            while not self._leave_out(temporary):  # writing takes a while, in which others may decide
                pass
            temporary.rename(target)

    def _leave_out(self, path: Path) -> bool:
        """Whether all may stay; else the file is written anew without those who may not."""
        with pq.ParquetFile(path) as source:
            if self._stay(source.read(columns=[USER_KEY])).all():
                return True
            left = path.with_name(f"{path.name}.left")
            with pq.ParquetWriter(left, source.schema_arrow, **writing(source.schema_arrow)) as sink:
                for batch in source.iter_batches(_BATCH_ROWS):
                    table = pa.Table.from_batches([batch])
                    sink.write_table(table.filter(pa.array(self._stay(table))))
        left.rename(path)
        return False

    def _stay(self, table: pa.Table) -> NDArray[np.bool_]:
        keys = b"".join(table.column(USER_KEY).to_pylist())
        return self._allowed(np.frombuffer(keys, np.uint8).reshape(-1, KEY_BYTES))
