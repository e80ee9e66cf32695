"""What goes into the bundle's core: preprocessing, weights, tables, vectors, catalogue, and a card that says what it is."""

import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from towers.bundle import sha256, write_vectors
from towers.columns import ITEM_ID
from towers.model import TwoTower
from towers.phrases import PHRASES
from towers.runtime import WEIGHTS_FILE
from training.ancestry import LEARNED, Learned
from training.config import TrainingConfig
from training.facts import git_commit
from training.interactions import Interactions

LIBRARIES = ("torch", "numpy", "pyarrow", "safetensors", "onnx", "onnxruntime")


def version_name(name: str, fingerprint: str) -> str:
    """A bundle version: the model's name, the moment, the start of its weights' digest."""
    return f"{name}-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{fingerprint[:8]}"


def bundle_parts(
    run_dir: Path, data: Interactions, model: TwoTower, vectors_ID: NDArray[np.float32], folder: Path
) -> dict[str, Path | bytes]:
    """Files of the bundle by name; those made here are written under `folder`, where `onnx/` lies already if wanted."""
    data.preprocessor.save(folder)
    write_vectors(folder / "item_vectors.arrow", vectors_ID)
    counts = pa.table({ITEM_ID: data.catalog.column(ITEM_ID), "count": pa.array(data.train_counts(), pa.int64())})
    pq.write_table(counts, folder / "popularity.parquet", compression="zstd")
    pq.write_table(data.catalog, folder / "catalog.parquet", compression="zstd")
    (folder / "tables").mkdir()
    half = []
    for name, rows_VD in model.table_arrays().items():
        np.save(folder / "tables" / f"{name}.npy", rows_VD, allow_pickle=False)
        if rows_VD.dtype == np.float16:
            half.append(name)
    parts: dict[str, Path | bytes] = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    for name in ("model_config.json", "weights.safetensors"):
        parts[name] = run_dir / "model" / name
    parts["card.md"] = _card(run_dir, data, model, half).encode()
    return parts


def bundle_facts(run_dir: Path, config: TrainingConfig, data: Interactions) -> dict[str, Any]:
    """What the manifest says besides files and checksums."""
    return {
        "name": config.export.name,
        "data": config.data.name,
        "git_commit": git_commit(),
        "libraries": {name: version(name) for name in LIBRARIES},
        "schema_hash": data.schema.hash(),
        PHRASES: dict(config.data.phrases),
        "metrics": headline(run_dir),
        LEARNED: Learned.of_run(run_dir).as_json(),  # for a training that starts from the bundle
    }


def headline(run_dir: Path) -> dict[str, Any]:
    """Whole-set figures of metrics.json; none where it measured other weights than the run's model has now."""
    path = run_dir / "metrics.json"
    if not path.is_file():
        return {}
    document = json.loads(path.read_text())
    if document["run"].get("weights_sha256") != sha256(run_dir / "model" / WEIGHTS_FILE):
        return {}
    names = [name for name in document["metrics"] if name.count("/") == 1 or name.split("/")[1] in ("masked", "unmasked")]
    return {name: document["metrics"][name]["value"] for name in names if "=" not in name}


def _card(run_dir: Path, data: Interactions, model: TwoTower, half: list[str]) -> str:
    """A page for people: what the model is, which of its tables are in half precision, what it was trained on, how good it was found."""
    config = model.config
    spectral = config.spectral
    narrowed = ", narrowed together" if spectral.narrow_to else ""
    parts = f" ({config.dim} learned, {spectral.dim} spectral with weight {spectral.weight:g}{narrowed})" if spectral.dim else ""
    lines = [
        "# Model card",
        "",
        f"Two towers, {config.width} dimensions{parts}, {config.similarity} similarity;"
        f" history encoder `{config.history.name}` over the last {config.history.length} events.",
        f"Trained on {int(data.train_counts().sum()):,} interactions of {data.n_users:,} users with {data.n_items:,} items.",
        "",
        "Inputs: " + ", ".join(f"`{f.input_name}` ({f.kind})" for f in data.schema.features) + ".",
        "The user vector comes from history, context and declared features"
        + ("; it also has an embedding of the user's key." if config.use_user_id else "; there is no per-user parameter."),
        "",
    ]
    if half:
        lines += ["Rounded to half precision when training ended: " + ", ".join(f"`{name}`" for name in half) + ".", ""]
    figures = headline(run_dir)
    if figures:
        lines += ["| metric | value |", "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in figures.items()), ""]
        lines.append("Protocol, intervals and baselines: `metrics.json` of the run.")
    else:
        lines.append("These weights were not evaluated before export: run `towers evaluate`, then export again.")
    return "\n".join(lines) + "\n"
