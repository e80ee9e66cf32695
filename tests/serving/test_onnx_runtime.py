"""The ONNX towers against torch, through the same preprocessing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.onnx_runtime import OnnxRuntime
from towers.bundle import Bundle
from towers.encoder import Encoder, UserRow
from towers.errors import BundleError
from towers.runtime import TorchRuntime

NOW_US = 20_000 * 86_400_000_000

ROWS = [
    UserRow(),
    UserRow(["item-01"], ["play"], [NOW_US - 60_000_000], NOW_US),
    UserRow([f"item-{i:02d}" for i in range(12)], ["play", "skip"] * 6, [NOW_US - i * 3_600_000_000 for i in range(12, 0, -1)], NOW_US),
    UserRow(["who?", "a/b c"], [], [], NOW_US, {"hour": 7, "budget": 40}, {"likes": ["drama", "news", "no such"]}),
]


WORLDS = ["world", "half_world", "transformer_world", "half_transformer_world"]


@pytest.mark.parametrize("world_name", WORLDS)
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], ROWS[2:3]], ids=["many", "empty", "long"])
def test_vectors_equal_torchs(request: pytest.FixtureRequest, world_name: str, rows: list[UserRow]) -> None:
    world = request.getfixturevalue(world_name)
    runtime = OnnxRuntime(Bundle.open(world.bundle), world.preprocessor)
    found, wanted = (Encoder(world.preprocessor, one, 6).users(rows) for one in (runtime, TorchRuntime(world.model)))
    np.testing.assert_allclose(found.vectors_BHD, wanted.vectors_BHD, atol=1e-5, rtol=0)
    if "transformer" not in world_name:
        assert found.history_weights_BL is not None and wanted.history_weights_BL is not None
        np.testing.assert_allclose(found.history_weights_BL, wanted.history_weights_BL, atol=1e-5, rtol=0)
    else:
        assert found.history_weights_BL is wanted.history_weights_BL is None


@pytest.mark.parametrize("world_name,free", [("world", True), ("transformer_world", False)])
def test_a_pooled_history_is_read_without_its_padding(request: pytest.FixtureRequest, world_name: str, free: bool) -> None:
    """400 columns, of which two hold events: the rows of two are gathered, and the vector is that of a short window."""
    world = request.getfixturevalue(world_name)
    runtime = OnnxRuntime(Bundle.open(world.bundle), world.preprocessor)
    assert runtime._user.free_history is free
    if free:
        short, long = (Encoder(world.preprocessor, runtime, length).users(ROWS[1:2] + ROWS[3:]) for length in (6, 400))
        np.testing.assert_allclose(long.vectors_BHD, short.vectors_BHD, atol=1e-6, rtol=0)
        assert long.history_weights_BL is not None and short.history_weights_BL is not None
        assert long.history_weights_BL.shape == (2, 400) and not long.history_weights_BL[:, :394].any()
        np.testing.assert_allclose(long.history_weights_BL[:, 394:], short.history_weights_BL, atol=1e-6, rtol=0)


@pytest.mark.parametrize("world_name", WORLDS)
def test_item_vectors_equal_the_bundles(request: pytest.FixtureRequest, world_name: str) -> None:
    world = request.getfixturevalue(world_name)
    bundle = Bundle.open(world.bundle)
    encoder = Encoder(bundle.preprocessor(), OnnxRuntime(bundle, bundle.preprocessor()), 6)
    columns = {name: world.catalog[name].to_pylist() for name in ("item_id", "categories")}
    np.testing.assert_allclose(encoder.items(columns, len(world.catalog)), bundle.item_vectors(), atol=1e-5, rtol=0)


def without(world: Any, folder: Path, dropped: str) -> Bundle:
    opened = Bundle.open(world.bundle)
    files = {name: facts for name, facts in opened.manifest["files"].items() if name != dropped}
    return Bundle(opened.folder, {**opened.manifest, "files": files})


@pytest.mark.parametrize("dropped", ["onnx/user.onnx", "tables/history_item.npy"])
def test_a_bundle_without_a_part_is_refused(world: Any, tmp_path: Path, dropped: str) -> None:
    with pytest.raises(BundleError, match=r"ONNX|tables/history_item\.npy"):
        OnnxRuntime(without(world, tmp_path, dropped), world.preprocessor)


def test_graphs_name_no_file_of_the_machine_that_trained(world: Any) -> None:
    for side in ("user", "item"):
        graph = (world.bundle / "onnx" / f"{side}.onnx").read_bytes()
        assert b".py" not in graph and b"Traceback" not in graph and b"site-packages" not in graph


def with_table(world: Any, folder: Path, rows_VD: np.ndarray) -> Bundle:
    """A copy whose history table is another one."""
    opened = Bundle.open(world.bundle)
    for name in opened.manifest["files"]:
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes((opened.folder / name).read_bytes())
    np.save(folder / "tables" / "history_item.npy", rows_VD)
    return Bundle(folder, opened.manifest)


@pytest.mark.parametrize("rows,dtype", [(3, "float32"), (None, "float64"), (None, ">f4")])
def test_a_table_of_other_rows_is_refused(world: Any, tmp_path: Path, rows: int | None, dtype: str) -> None:
    table_VD = world.model.tables["history_item"].weight.detach().numpy()
    with pytest.raises(BundleError, match="expected float32 or float16"):
        OnnxRuntime(with_table(world, tmp_path, table_VD[:rows].astype(dtype)), world.preprocessor)


@pytest.mark.parametrize("world_name,dtype", [("world", np.float16), ("half_world", np.float32)])
def test_a_table_of_another_precision_than_its_graph_is_refused(
    request: pytest.FixtureRequest, tmp_path: Path, world_name: str, dtype: type
) -> None:
    world = request.getfixturevalue(world_name)
    table_VD = world.model.tables["history_item"].weight.detach().numpy().astype(dtype)
    with pytest.raises(BundleError, match=r"onnx/user.onnx reads history.item.rows as tensor.*export it again"):
        OnnxRuntime(with_table(world, tmp_path, table_VD), world.preprocessor)
