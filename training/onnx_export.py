"""The towers as ONNX graphs without their large tables, checked equal to torch before anything is published.

A graph takes rows already gathered from the tables (`history.item.rows`), so that servers map the tables from disk and share them.
"""

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from towers.batch import of_history
from towers.errors import GateError
from towers.lookups import gather
from towers.model import ExportCore, TwoTower
from towers.parts import user_outputs

TOLERANCE = 1e-5
OPSET = 20


def export_towers(model: TwoTower, user: Mapping[str, NDArray[np.generic]], item: Mapping[str, NDArray[np.generic]], folder: Path) -> float:
    """Write user.onnx and item.onnx, and compare each with torch on the sample.

    Args:
        model: the trained towers.
        user, item: sample batches of real rows; the comparison runs on all of them and on one row alone.
        folder: where the files go.

    Returns:
        the largest difference of any number, of its row's largest where that is above 1.

    Raises:
        GateError: that is more than TOLERANCE.
    """
    model = model.to("cpu").eval()
    folder.mkdir(parents=True, exist_ok=True)
    tables = model.table_arrays()
    worst = 0.0
    for core, sample in ((ExportCore(model, "user"), user), (ExportCore(model, "item"), item)):
        arrays = gather(sample, core.inputs, tables)
        gathered = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        path = folder / f"{core.side}.onnx"
        _export(core, gathered, path)
        worst = float(np.maximum(worst, _difference(core, gathered, path)))  # NaN stays NaN
    if not worst <= TOLERANCE:
        raise GateError(f"the ONNX towers differ from torch by {worst:.2e}, allowed is {TOLERANCE:.0e}; export.onnx=false goes without")
    return worst


def _export(core: ExportCore, gathered: dict[str, Tensor], path: Path) -> None:
    names = list(gathered)
    batch, history = torch.export.Dim("batch", min=1, max=65536), torch.export.Dim("history", min=1, max=65536)
    # A weighted sum takes as many events as there are, so that serving reads no padding; a transformer is built for one length.
    free = {entry.name for entry in core.inputs if core.model.history.pools and of_history(entry.source)}
    outputs = user_outputs(core.model.config, core.model.plan) if core.side == "user" else ["vectors"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        # the exporter and onnxscript warn about their own internals, which nobody here can act on
        warnings.simplefilter("ignore")
        torch.onnx.export(
            core,
            tuple(gathered.values()),
            str(path),
            input_names=names,
            output_names=outputs,
            dynamic_shapes=(tuple({0: batch, 1: history} if name in free else {0: batch} for name in names),),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    _drop_traces(path)


def _drop_traces(path: Path) -> None:
    """The exporter notes the Python stack behind each node: files and lines of the machine that trained, of no use to a server."""
    graph_file = onnx.load(str(path))
    bodies = [graph_file.graph, *graph_file.functions]
    for part in (graph_file, *bodies, *(node for body in bodies for node in body.node), *(v for body in bodies for v in body.value_info)):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    onnx.save(graph_file, str(path))


def _difference(core: ExportCore, gathered: dict[str, Tensor], path: Path) -> float:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    taken = {node.name for node in session.get_inputs()}
    worst = 0.0
    for rows in (slice(None), slice(0, 1)):
        part = {name: tensor[rows] for name, tensor in gathered.items()}
        with torch.no_grad():
            expected = core(*part.values())
        got = session.run(None, {name: tensor.numpy() for name, tensor in part.items() if name in taken})
        for want, have in zip(expected, got, strict=True):
            worst = float(np.maximum(worst, _apart(want.numpy(), have)))
    return worst


def _apart(want: NDArray[np.float32], have: NDArray[np.float32]) -> float:
    """The greatest difference, in units of the row's largest number where that is above 1: vectors of length 400, as a spectral part's are,
    have no five places behind the point in fp32."""
    axes = tuple(range(1, want.ndim))
    size_B = np.abs(want).max(axis=axes, initial=1.0)
    return float((np.abs(want - have).max(axis=axes, initial=0.0) / size_B).max(initial=0.0))
