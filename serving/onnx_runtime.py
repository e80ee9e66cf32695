"""The towers without torch: ONNX graphs on one CPU thread, rows of large tables gathered from memory-mapped files."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from towers.batch import HISTORY_ITEM, FeatureBatch, UserEncoding, of_history
from towers.bundle import Bundle
from towers.errors import BundleError
from towers.half import Table
from towers.lookups import HISTORY_MASK, CoreInput, gather, plan_towers
from towers.new_items import open_new_items
from towers.parts import other_parts, user_parts
from towers.preprocess import Preprocessor

_TENSORS = {"float32": "tensor(float)", "float16": "tensor(float16)"}


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
        self._tables = {name: _table(bundle, name, rows, plan.widths[name]) for name, rows in plan.tables.items()}
        self._user = _Graph(bundle, "onnx/user.onnx", plan.user, self._tables)
        self._item = _Graph(bundle, "onnx/item.onnx", plan.item, self._tables)
        self._config, self._parts = config, other_parts(plan)
        self._new_items = None
        if bundle.has("weights.safetensors"):  # which the graphs do without
            with bundle.reading("weights.safetensors") as path:
                self._new_items = open_new_items(path)

    def user(self, batch: FeatureBatch, parts: bool = False) -> UserEncoding:
        """User vectors; where they are sums (mean encoder, linear head) the weight of each history event too, and with `parts` what they
        are the sums of: None of a bundle that was exported before its graph told."""
        length = batch[HISTORY_ITEM].shape[1]
        padding = _padding(batch[HISTORY_ITEM]) if self._user.free_history else 0
        if padding:
            batch = {n: array[:, padding:] if of_history(n) else array for n, array in batch.items()}
        read = gather(batch, self._user.inputs, self._tables)
        others = self._user.others if parts else []
        vectors_BHD, shares_BL, *each = self._user.run(read, others)
        if not self._config.sums_user:
            return UserEncoding(vectors_BHD)
        weights_BL = shares_BL
        if padding:
            weights_BL = np.zeros((len(vectors_BHD), length), np.float32)
            weights_BL[:, padding:] = shares_BL
        found = user_parts(self._config, self._parts, shares_BL, read, each) if others else None
        return UserEncoding(vectors_BHD, weights_BL, found)

    def item(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """Item vectors, float32 [B, D]."""
        vectors_BD = self._item.run(gather(batch, self._item.inputs, self._tables))[0]
        return vectors_BD if self._new_items is None else self._new_items.put(batch, vectors_BD)


class _Graph:
    """One tower's graph and what it reads."""

    def __init__(self, bundle: Bundle, name: str, planned: Sequence[CoreInput], tables: Mapping[str, Table]) -> None:
        options = ort.SessionOptions()
        # One thread beats several for single requests, and worker processes must not fight over cores.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        with bundle.reading(name) as path:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        shapes = {entry.name: entry.shape for entry in self._session.get_inputs()}
        wanted = set(shapes)
        # where the graph takes any number of history events; older ones, and those of a transformer, take a fixed one
        self.free_history = HISTORY_MASK in shapes and not isinstance(shapes[HISTORY_MASK][1], int)
        unplanned = wanted - {entry.name for entry in planned}
        if unplanned:
            raise BundleError(
                f"bundle {bundle.folder}: {name} reads {sorted(unplanned)}, which its model_config.json does not; export it again"
            )
        # the exporter drops inputs that do not reach the output
        self.inputs = [entry for entry in planned if entry.name in wanted]
        self._check_precision(bundle, name, tables)
        outputs = [entry.name for entry in self._session.get_outputs()]
        self._outputs = [name for name in outputs if name in ("vectors", "weights")]
        self.others = [name for name in outputs if name not in self._outputs]

    def _check_precision(self, bundle: Bundle, name: str, tables: Mapping[str, Table]) -> None:
        """Rows go into the graph as they lie in their table; a narrow one is widened there, which takes a tenth of what NumPy needs."""
        read = {entry.name: entry.type for entry in self._session.get_inputs()}
        for entry in self.inputs:
            if entry.table and read[entry.name] != _TENSORS[tables[entry.table].dtype.name]:
                raise BundleError(
                    f"bundle {bundle.folder}: {name} reads {entry.name} as {read[entry.name]}, and tables/{entry.table}.npy is"
                    f" {tables[entry.table].dtype}; export it again"
                )

    def run(self, gathered: dict[str, NDArray[np.generic]], others: Sequence[str] = ()) -> list[NDArray[np.float32]]:
        """Vectors, of a user tower weights, and what else is asked for of `others`."""
        found: list[NDArray[np.float32]] = self._session.run([*self._outputs, *others], gathered)
        return found


def _padding(item_BL: NDArray[np.generic]) -> int:
    """Leading columns in which no row has an event; one column is left in any case."""
    if np.count_nonzero(item_BL[:, 0]):
        return 0
    held_L = (item_BL != 0).any(axis=0)
    return int(held_L.argmax()) if held_L.any() else max(0, item_BL.shape[1] - 1)


def _table(bundle: Bundle, name: str, rows: int, dim: int) -> Table:
    with bundle.reading(f"tables/{name}.npy") as path:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    if table.dtype.name not in _TENSORS or not table.dtype.isnative or table.shape != (rows, dim):
        raise BundleError(
            f"bundle {bundle.folder}: tables/{name}.npy is {table.dtype} {table.shape}, expected {' or '.join(_TENSORS)} {(rows, dim)}"
        )
    return np.asarray(table)
