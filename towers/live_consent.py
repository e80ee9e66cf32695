"""What people told a service to allow or refuse, as the file by which the training jobs come to know it.

`consent.parquet` in the service's state_dir: the last decision of each person about each purpose, written anew whole whenever one changed.
A person stands there under a mark of the key (`towers.identity.mark`), because a refusal outlives the wish to be forgotten.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.columns import NO_TIME, TIMESTAMP
from towers.consent import GRANTED, PURPOSE, PURPOSES, Consent
from towers.errors import ConfigError, DataError
from towers.identity import KEY_BYTES, SECRET_FINGERPRINT, UserKeys, mark

LIVE_CONSENT = "consent.parquet"
"""Its name in the service's state_dir."""
MARK = "mark"
SCHEMA = pa.schema(
    [
        pa.field(MARK, pa.binary(KEY_BYTES), nullable=False),
        pa.field(PURPOSE, pa.string(), nullable=False),
        pa.field(GRANTED, pa.bool_(), nullable=False),
        pa.field(TIMESTAMP, pa.timestamp("us", "UTC"), nullable=False),
    ]
)
_GENERATION = b"towers.generation"


class Decision(NamedTuple):
    """Of one person about one purpose; `timestamp` in microseconds UTC."""

    mark: bytes
    purpose: str
    granted: bool
    timestamp: int


def write_decisions(path: Path, decisions: Iterable[Decision], generation: int, secret: bytes) -> None:
    """Write the file, whole or not at all; readable by this user alone.

    Args:
        generation: says which state of the decisions this is; see `generation_of`.
        secret: fingerprint of the secret that the people's keys are made with.
    """
    rows = list(decisions)
    columns = list(zip(*rows, strict=True)) or [()] * len(SCHEMA)
    table = pa.table([pa.array(values, field.type) for values, field in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as sink:
            told = table.replace_schema_metadata({SECRET_FINGERPRINT: secret, _GENERATION: str(generation)})
            pq.write_table(told, sink, compression="zstd", write_page_checksum=True)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # only there where the disk was full


def generation_of(path: Path) -> int:
    """Which state of the decisions a file holds; 0 = there is none, or none that can be read."""
    try:
        return int((pq.read_schema(path).metadata or {}).get(_GENERATION, b"0"))
    except (OSError, pa.ArrowException):
        return 0


class LiveConsent:
    """Decisions that a service was told.

    Args:
        decisions: each person's last about each purpose.
    """

    def __init__(self, decisions: Iterable[Decision]) -> None:
        self._decided: dict[str, dict[bytes, Decision]] = {purpose: {} for purpose in PURPOSES}
        for decision in decisions:
            self._decided[decision.purpose][decision.mark] = decision

    @classmethod
    def open(cls, path: Path, keys: UserKeys, forgotten: Mapping[bytes, int] | None = None) -> "LiveConsent":
        """Read a file that `write_decisions` wrote.

        Args:
            keys: whose secret the people's keys must be made with.
            forgotten: by mark, the moment (microseconds UTC) up to which grants of a person are passed over: a backup may bring them back.

        Raises:
            DataError: it cannot be read, or names a purpose that is not known here.
            ConfigError: the people in it were keyed with another secret.
        """
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                secret = (file.schema_arrow.metadata or {}).get(SECRET_FINGERPRINT)
                table = file.read(SCHEMA.names).cast(SCHEMA)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"decisions told to a service, {path}, cannot be read: {error}") from error
        if secret != keys.fingerprint():
            raise ConfigError(
                f"{path}: its people were keyed with another secret, so that what they refused would go unheard. Point identity.key_file or"
                " $TOWERS_KEY_FILE at the file that the service used"
            )
        unknown = set(table.column(PURPOSE).unique().to_pylist()) - set(PURPOSES)
        if unknown:
            raise DataError(f"{path}: unknown purpose {min(unknown)!r}; expected one of {', '.join(PURPOSES)}")
        times = table.column(TIMESTAMP).cast(pa.int64()).to_pylist()
        columns = [table.column(name).to_pylist() for name in SCHEMA.names[:-1]]
        decisions = (Decision(*row) for row in zip(*columns, times, strict=True))
        moments = forgotten or {}
        return cls(found for found in decisions if not (found.granted and found.timestamp <= moments.get(found.mark, NO_TIME)))

    def __len__(self) -> int:
        """How many people decided anything."""
        return len(set().union(*self._decided.values()))

    def settle(
        self, allowed_n: NDArray[np.bool_], keys_n: NDArray[np.uint8], purpose: str, table: Consent | None = None
    ) -> NDArray[np.bool_]:
        """Whether each user allows a purpose once these decisions count too.

        Args:
            allowed_n: bool [n], as it is without them.
            keys_n: uint8 [n, 16].
            table: where allowed_n comes from; of its row and a decision here the later counts, of the same moment the decision.
        """
        decided, settled_n = self._decided[purpose], allowed_n.copy()
        joined = np.ascontiguousarray(keys_n, np.uint8).tobytes() if decided else b""
        for place in range(len(joined) // KEY_BYTES):
            key = joined[place * KEY_BYTES : (place + 1) * KEY_BYTES]
            found = decided.get(mark(key))
            if found is not None and (table is None or found.timestamp >= table.times(key)[PURPOSES.index(purpose)]):
                settled_n[place] = found.granted
        return settled_n
