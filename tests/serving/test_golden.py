"""Files made by an earlier version still open and answer alike; see scripts/make_golden.py."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serving.retriever import Retriever
from towers.bundle import FORMAT_VERSION, Bundle
from towers.errors import BundleError
from towers.runtime import TorchRuntime, load_model

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / f"bundle_v{FORMAT_VERSION}"


@pytest.fixture(scope="module")
def golden() -> Retriever:
    return Retriever.open(GOLDEN / "bundle", GOLDEN / "histories.parquet", GOLDEN / "user_key")


@pytest.mark.parametrize("place", range(4))
def test_answers_are_those_of_the_day_it_was_made(golden: Retriever, place: int) -> None:
    answer: dict[str, Any] = json.loads((GOLDEN / "answers.json").read_text(encoding="utf-8"))[place]
    reply = golden.recommend(**answer["request"])
    assert (reply.mode, reply.fallback.reason if reply.fallback else None) == (answer["mode"], answer["fallback"])
    facts = [(item.item_id, item.title, item.categories) for item in reply.items]
    assert facts == [(item["item_id"], item["title"], item["categories"]) for item in answer["items"]]
    np.testing.assert_allclose([item.score for item in reply.items], [item["score"] for item in answer["items"]], atol=1e-5)


def test_all_modes_and_parts_are_there(golden: Retriever) -> None:
    answers = json.loads((GOLDEN / "answers.json").read_text(encoding="utf-8"))
    assert [answer["mode"] for answer in answers] == ["personalized", "personalized", "cold", "fallback"]
    parts = {"index.faiss", "index.json", "onnx/user.onnx", "onnx/item.onnx", "tables/item_id.npy", "weights.safetensors", "card.md"}
    assert parts <= set(golden.bundle.manifest["files"])
    assert golden.index.stats().kind == "ivf"
    assert golden.model_version != golden.bundle.version


def test_the_weights_make_the_same_vectors() -> None:
    """What torch computes from the weights is what the bundle's vectors were, and what ONNX computes."""
    opened = Bundle.open(GOLDEN / "bundle")
    preprocessor = opened.preprocessor()
    catalog = opened.catalog()
    columns = {f.name: catalog.column(f.name) for f in preprocessor.schema.owned_by("item")}
    vectors = TorchRuntime(load_model(opened.folder, preprocessor)).item(preprocessor.encode("item", columns, len(catalog)))
    np.testing.assert_allclose(vectors, opened.item_vectors(), atol=1e-5)


def test_it_names_no_file_of_the_machine_that_made_it() -> None:
    for path in GOLDEN.rglob("*"):
        if path.is_file():
            assert not re.search(rb"/(home|root|tmp|work|Users)/|site-packages|\.py\b", path.read_bytes()), path


def test_another_format_is_refused_with_both_numbers(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "bundle", tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    (tmp_path / "b" / "manifest.json").write_text(json.dumps({**manifest, "format_version": FORMAT_VERSION + 1}))
    with pytest.raises(BundleError, match=f"format {FORMAT_VERSION + 1}, this version of Towers reads {FORMAT_VERSION}"):
        Bundle.open(tmp_path / "b")
