"""Which library runs the towers, and that they all give the same vectors."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from serving.onnx_runtime import OnnxRuntime
from serving.retriever import Retriever
from serving.runtimes import open_runtime
from towers.bundle import Bundle
from towers.encoder import Encoder, UserRow
from towers.errors import BundleError, ConfigError
from towers.runtime import TorchRuntime

NOW_US = 20_000 * 86_400_000_000
ROWS = [
    UserRow(
        [f"item-{(i + j) % 35:02d}" for j in range(i % 9)],
        ["play", "skip", "who?"][i % 3 : i % 3 + 1] * (i % 9),
        [NOW_US - (j + 1) * 3_600_000_000 for j in range(i % 9)][::-1],
        NOW_US,
        {"hour": i % 24, "budget": i - 3},
        {"likes": ["drama", "news"][: i % 3]},
    )
    for i in range(256)
]


def without_onnx(bundle: Bundle) -> Bundle:
    files = {name: facts for name, facts in bundle.manifest["files"].items() if not name.startswith(("onnx/", "tables/"))}
    return Bundle(bundle.folder, {**bundle.manifest, "files": files})


@pytest.mark.parametrize("world_name", ["world", "transformer_world"])
@pytest.mark.parametrize("size", [1, 32, 256])
def test_torch_gives_the_vectors_of_onnx(request: pytest.FixtureRequest, world_name: str, size: int) -> None:
    world = request.getfixturevalue(world_name)
    bundle = Bundle.open(world.bundle)
    runtimes = [open_runtime(bundle, world.preprocessor, name) for name in ("onnx", "torch")]
    assert [type(runtime) for runtime in runtimes] == [OnnxRuntime, TorchRuntime]
    ours, theirs = (Encoder(world.preprocessor, runtime, 6).users(ROWS[:size]).vectors_BHD for runtime in runtimes)
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert size == 1 or np.ptp(ours, axis=0).max() > 0.1


def test_a_bundle_without_onnx_towers_falls_back_to_torch(world: Any) -> None:
    bundle = Bundle.open(world.bundle)
    assert isinstance(open_runtime(bundle, world.preprocessor), OnnxRuntime)
    assert isinstance(open_runtime(without_onnx(bundle), world.preprocessor), TorchRuntime)
    with pytest.raises(BundleError, match="ONNX"):
        open_runtime(without_onnx(bundle), world.preprocessor, "onnx")


@pytest.mark.parametrize(("name", "device", "expected"), [("torch", "cpu", "ConfigError"), ("auto", "cpu", "BundleError")])
def test_where_torch_is_not_installed_it_says_so(world: Any, name: str, device: str, expected: str) -> None:
    code = f"""
import sys
sys.modules["torch"] = None
from serving.runtimes import open_runtime
from towers.bundle import Bundle
opened = Bundle.open({str(world.bundle)!r})
bundle = Bundle(opened.folder, {{**opened.manifest, "files": {{n: f for n, f in opened.manifest["files"].items() if "onnx" not in n}}}})
open_runtime(bundle, opened.preprocessor(), {name!r}, {device!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and f"{expected}: " in done.stderr and "torch" in done.stderr.splitlines()[-1]


def test_weights_that_the_manifest_does_not_list_are_not_read(world: Any, tmp_path: Path) -> None:
    bundle = without_onnx(Bundle.open(world.bundle))
    files = {name: facts for name, facts in bundle.manifest["files"].items() if name != "weights.safetensors"}
    with pytest.raises(BundleError, match=r"no weights\.safetensors"):
        open_runtime(Bundle(bundle.folder, {**bundle.manifest, "files": files}), world.preprocessor)


def test_a_gpu_that_is_not_there_is_a_config_error(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"serving\.device"):
        open_runtime(Bundle.open(world.bundle), world.preprocessor, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("world_name", ["world", "transformer_world"])
@pytest.mark.parametrize("size", [1, 32, 256])
def test_a_gpu_gives_the_vectors_of_onnx(request: pytest.FixtureRequest, world_name: str, size: int) -> None:
    world = request.getfixturevalue(world_name)
    bundle = Bundle.open(world.bundle)
    gpu, cpu = (open_runtime(bundle, world.preprocessor, device=device) for device in ("cuda", "cpu"))
    ours, theirs = (Encoder(world.preprocessor, runtime, 6).users(ROWS[:size]).vectors_BHD for runtime in (gpu, cpu))
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_lists_encoded_on_a_gpu_are_those_of_the_cpu(world: Any) -> None:
    gpu, cpu = (Retriever.open(world.bundle, world.histories, world.key_file, device=device) for device in ("cuda", "cpu"))
    for user in ("user-5", "likes-only", "empty"):
        asked = {"user_id": user, "context": {"hour": 5, "budget": 3.0}, "k": 20, "now": NOW_US / 1e6, "explain": True}
        ours, theirs = gpu.recommend(**asked), cpu.recommend(**asked)
        assert ours.mode == theirs.mode
        assert [item.item_id for item in ours.items] == [item.item_id for item in theirs.items]
        assert [item.score for item in ours.items] == pytest.approx([item.score for item in theirs.items], abs=1e-4)


@pytest.mark.parametrize("name", ["onnx", "torch"])
def test_a_linear_towers_vectors_are_the_sums_of_their_parts(world: Any, name: str) -> None:
    runtime = open_runtime(Bundle.open(world.bundle), world.preprocessor, name)
    batch = Encoder(world.preprocessor, runtime, 6).user_batch(ROWS)
    plain, found = runtime.user(batch), runtime.user(batch, parts=True)
    assert plain.parts is None and found.parts is not None
    np.testing.assert_allclose(found.vectors_BHD, plain.vectors_BHD, atol=1e-6)
    assert list(found.parts.names) == ["no_history", "context.hour", "context.budget", "user.likes"]
    np.testing.assert_allclose(found.parts.parts_BSD.sum(1), found.vectors_BHD[:, 0], atol=2e-6)
    empty_B = np.array([not row.history_items for row in ROWS])
    assert np.array_equal(np.abs(found.parts.parts_BSD[:, -4]).max(1) > 0, empty_B)
    assert np.abs(found.parts.parts_BSD[~empty_B, -5]).min(1).max() > 0


def test_other_towers_tell_no_parts(transformer_world: Any) -> None:
    for name in ("onnx", "torch"):
        runtime = open_runtime(Bundle.open(transformer_world.bundle), transformer_world.preprocessor, name)
        assert runtime.user(Encoder(transformer_world.preprocessor, runtime, 6).user_batch(ROWS[:3]), parts=True).parts is None
