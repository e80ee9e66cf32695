"""The towers without torch: ONNX graphs on one CPU thread, rows of large tables gathered from memory-mapped files."""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from towers.batch import FeatureBatch, UserEncoding
from towers.bundle import Bundle
from towers.errors import BundleError
from towers.lookups import CoreInput, gather, plan_towers
from towers.preprocess import Preprocessor


class OnnxRuntime:
    """Runs the towers of a bundle; see towers.encoder.Runtime.

    Args:
        bundle: verified, with `onnx/` and `tables/` in it.
        preprocessor: the bundle's.

    Raises:
        BundleError: a part is missing or does not fit the others.
    """

    def __init__(self, bundle: Bundle, preprocessor: Preprocessor) -> None:
        if not bundle.has("onnx/user.onnx"):
            raise BundleError(
                f"bundle {bundle.folder} holds no ONNX towers, which serving needs; run `towers export` with export.onnx=true"
            )
        config = bundle.model_config()
        plan = plan_towers(config, preprocessor.inputs, preprocessor.event_rows)
        self._tables = {name: _table(bundle, name, rows, config.dim) for name, rows in plan.tables.items()}
        self._user = _Graph(bundle, "onnx/user.onnx", plan.user)
        self._item = _Graph(bundle, "onnx/item.onnx", plan.item)
        self._weighs_history = config.history.name == "mean" and config.user_head.name == "linear"

    def user(self, batch: FeatureBatch) -> UserEncoding:
        """User vectors, and the weight of each history event where they tell its exact share (mean encoder, linear head)."""
        found = self._user.run(batch, self._tables)
        return UserEncoding(found["vectors"], found["weights"] if self._weighs_history else None)

    def item(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """Item vectors, float32 [B, D]."""
        return self._item.run(batch, self._tables)["vectors"]


class _Graph:
    """One tower's graph and what it reads."""

    def __init__(self, bundle: Bundle, name: str, planned: Sequence[CoreInput]) -> None:
        options = ort.SessionOptions()
        # One thread beats several for single requests, and worker processes must not fight over cores.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        with bundle.reading(name) as path:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        wanted = {entry.name for entry in self._session.get_inputs()}
        unplanned = wanted - {entry.name for entry in planned}
        if unplanned:
            raise BundleError(
                f"bundle {bundle.folder}: {name} reads {sorted(unplanned)}, which its model_config.json does not; export it again"
            )
        # the exporter drops inputs that do not reach the output
        self._inputs = [entry for entry in planned if entry.name in wanted]
        self._outputs = [entry.name for entry in self._session.get_outputs()]

    def run(self, batch: FeatureBatch, tables: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
        found = self._session.run(self._outputs, gather(batch, self._inputs, tables))
        return dict(zip(self._outputs, found, strict=True))


def _table(bundle: Bundle, name: str, rows: int, dim: int) -> NDArray[np.float32]:
    with bundle.reading(f"tables/{name}.npy") as path:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    if table.dtype != np.float32 or table.shape != (rows, dim):
        raise BundleError(f"bundle {bundle.folder}: tables/{name}.npy is {table.dtype} {table.shape}, expected float32 {(rows, dim)}")
    return np.asarray(table)
