"""Raw rows to vectors: the one way, for training, evaluation, export, cold items and live requests alike.

rows -> Preprocessor (NumPy) -> FeatureBatch -> Runtime (torch or ONNX) -> vectors
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from towers.batch import HISTORY_AGE, HISTORY_GAP, FeatureBatch, UserEncoding
from towers.columns import NO_TIME, TIMESTAMP
from towers.preprocess import Preprocessor


class Runtime(Protocol):
    """Runs the towers on prepared inputs."""

    def user(self, batch: FeatureBatch, parts: bool = False) -> UserEncoding:
        """User vectors of a batch, and with `parts` what they are the sums of, where they are."""
        ...

    def item(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """Item vectors, float32 [B, D]."""
        ...


_NOTHING: Mapping[str, Any] = {}


class UserRow(NamedTuple):
    """One user at one moment, in the caller's own values.

    Attributes:
        history_items: item ids, oldest first, all strictly before the request.
        history_events: their event types; empty = the default type for all.
        history_timestamps: microseconds UTC; empty = unknown.
        now: microseconds UTC of the request; NO_TIME = unknown.
        context: value by context feature name; missing ones are allowed.
        features: value by user feature name, declared preferences among them.
        history_rows: rows of history_items in the item vocabulary, where the caller has looked them up already.
        history_context: by context feature, the value that each event had; missing ones are allowed.
    """

    history_items: Sequence[str] = ()
    history_events: Sequence[str | None] = ()
    history_timestamps: Sequence[int] = ()
    now: int = NO_TIME
    context: Mapping[str, Any] = _NOTHING
    features: Mapping[str, Any] = _NOTHING
    history_rows: NDArray[np.int32] | None = None
    history_context: Mapping[str, Sequence[str | None]] = _NOTHING


class Encoder:
    """Preprocessing and a runtime, joined.

    Args:
        preprocessor: fitted in training.
        runtime: torch or ONNX.
        length: history events the user tower takes.
        times: which of the history's HISTORY_AGE and HISTORY_GAP it reads.
    """

    def __init__(
        self, preprocessor: Preprocessor, runtime: Runtime, length: int, times: Collection[str] = (HISTORY_AGE, HISTORY_GAP)
    ) -> None:
        self.preprocessor = preprocessor
        self.runtime = runtime
        self.length = length
        self._times = frozenset(times)
        self._context = [(f.name, f.source_column == TIMESTAMP) for f in preprocessor.schema.owned_by("context")]
        self._features = [f.name for f in preprocessor.schema.owned_by("user")]

    def user_batch(self, rows: Sequence[UserRow]) -> dict[str, NDArray[np.generic]]:
        """Inputs of the user tower: history, context and user features of each row.

        Raises:
            RequestError: a value does not fit its feature's kind; names the feature.
        """
        context = {name: [row.context.get(name, row.now if is_time else None) for row in rows] for name, is_time in self._context}
        features = {name: [row.features.get(name) for row in rows] for name in self._features}
        return {
            **self.preprocessor.history(
                [row.history_items if row.history_rows is None else row.history_rows for row in rows],
                [row.history_events for row in rows],
                [row.history_timestamps for row in rows],
                np.array([row.now for row in rows], np.int64),
                self.length,
                self._times,
                [row.history_context for row in rows],
            ),
            **self.preprocessor.encode("context", context, len(rows)),
            **self.preprocessor.encode("user", features, len(rows)),
        }

    def users(self, rows: Sequence[UserRow]) -> UserEncoding:
        """Vectors of the rows, in their order."""
        return self.runtime.user(self.user_batch(rows))

    def items(self, columns: Mapping[str, Sequence[Any]], rows: int) -> NDArray[np.float32]:
        """Vectors of items given by their raw feature values, new ones included: float32 [rows, D]."""
        return self.runtime.item(self.preprocessor.encode("item", columns, rows))
