"""The torch runtime: prepared NumPy inputs to NumPy vectors; and a model's two files, weights and config.

Legend: B rows, C item rows, H interests, L history length, D dim.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from towers.batch import FeatureBatch, UserEncoding
from towers.errors import BundleError, ConfigError, DataError
from towers.model import TwoTower
from towers.model_config import InputSpec, model_config_from_json, model_config_to_json
from towers.new_items import PREFIX, NewItems, open_new_items
from towers.parts import PART_ROWS, other_parts, user_parts

CONFIG_FILE = "model_config.json"
WEIGHTS_FILE = "weights.safetensors"


class Fitted(Protocol):
    """What a model is built from besides its config: a fitted preprocessor."""

    @property
    def inputs(self) -> Sequence[InputSpec]:
        """Its inputs."""
        ...

    @property
    def event_rows(self) -> int:
        """Rows of its event type vocabulary."""
        ...


class TorchRuntime:
    """Runs a model without gradients or dropout. A model in training is put back as it was after each call.

    Args:
        model: the towers; moved to `device`.
        device: `cpu`, `cuda`, ...
        new_items: tells vectors of items that were not in training; None = the item tower does.
    """

    def __init__(self, model: TwoTower, device: str | torch.device = "cpu", new_items: NewItems | None = None) -> None:
        self.model, self._new_items = model.to(device), new_items
        self.device = torch.device(device)
        self._sums = model.config.sums_user

    def user(self, batch: FeatureBatch, parts: bool = False) -> UserEncoding:
        """User vectors; where they are sums (mean encoder, linear head) history weights too, and with `parts` what they are the sums of."""
        with _evaluating(self.model), torch.inference_mode():
            tensors = to_tensors(batch, self.device)
            if not (parts and self._sums):
                vectors_BHD, weights_BL, _ = self.model.user(tensors)
                return UserEncoding(_numpy(vectors_BHD), _numpy(weights_BL) if self._sums else None)
            gathered = self.model.lookup_user(tensors)
            vectors_BHD, weights_BL, others = self.model.user_core(gathered, parts=True)
        rows = {name: _numpy(gathered[name]) for name in PART_ROWS if name in gathered}
        each = [_numpy(other) for other in others]
        found = user_parts(self.model.config, other_parts(self.model.plan), _numpy(weights_BL), rows, each)
        return UserEncoding(_numpy(vectors_BHD), _numpy(weights_BL), found)

    def item(self, batch: FeatureBatch) -> NDArray[np.float32]:
        """Item vectors, float32 [C, D]."""
        with _evaluating(self.model), torch.inference_mode():
            vectors_CD = _numpy(self.model.item(to_tensors(batch, self.device)))
        return vectors_CD if self._new_items is None else self._new_items.put(batch, vectors_CD)


def to_tensors(batch: FeatureBatch, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Arrays as tensors on a device. Memory is shared on CPU where the array may be written to, else copied."""
    return {name: on_device(np.require(array, requirements=["C", "W"]), device) for name, array in batch.items()}


def on_device(array: NDArray[np.generic], device: str | torch.device) -> Tensor:
    """An array as a tensor on a device. The way to a GPU leads through pinned memory, so that the copy runs while Python goes on; torch
    keeps that memory until the copy is done."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if torch.device(device).type == "cuda" else tensor.to(device)


def save_model(model: TwoTower, folder: Path, new_items: NewItems | None = None) -> None:
    """Write model_config.json and weights.safetensors, `new_items` among them; each file appears whole or not at all.

    Raises:
        DataError: the disk is full.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if new_items is not None:
        state |= {name: torch.from_numpy(array) for name, array in new_items.tensors().items()}
    weights = folder / f"{WEIGHTS_FILE}.tmp"
    try:
        save_file(state, weights, None if new_items is None else new_items.layout())
    except SafetensorError as error:
        weights.unlink(missing_ok=True)
        raise DataError(
            f"{folder / WEIGHTS_FILE}: cannot be written ({error}). Free some space, then run the same command again"
        ) from error
    os.replace(weights, folder / WEIGHTS_FILE)
    config = folder / f"{CONFIG_FILE}.tmp"
    config.write_text(json.dumps(model_config_to_json(model.config), indent=2, sort_keys=True) + "\n")
    os.replace(config, folder / CONFIG_FILE)


def load_model(folder: Path, preprocessor: Fitted, device: str | torch.device = "cpu") -> TwoTower:
    """Rebuild the model that `save_model` wrote, in evaluation mode; every weight must fit.

    Raises:
        BundleError: a file is missing or damaged, or weights, config and preprocessing do not belong together.
    """
    try:
        raw = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"{folder / CONFIG_FILE} cannot be read: {error}. Train or export again") from error
    if not isinstance(raw, Mapping):
        raise BundleError(f"{folder / CONFIG_FILE}: got {type(raw).__name__}, expected an object of settings")
    config = model_config_from_json(raw)
    try:
        state = load_weights(folder)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"{folder / WEIGHTS_FILE} cannot be read: {error}. Train or export again") from error
    try:
        model = TwoTower(config, preprocessor.inputs, preprocessor.event_rows)
    except (ConfigError, TypeError) as error:
        raise BundleError(f"{folder / CONFIG_FILE} does not fit the preprocessing beside it: {error}") from error
    _check_fit(folder, model, state)
    model.load_state_dict(state, strict=True)
    return model.to(device).eval()


def load_weights(folder: Path) -> dict[str, Tensor]:
    """The model's own weights by name; raises OSError or SafetensorError."""
    return {name: tensor for name, tensor in load_file(folder / WEIGHTS_FILE).items() if not name.startswith(PREFIX)}


def load_runtime(folder: Path, preprocessor: Fitted, device: str | torch.device = "cpu") -> TorchRuntime:
    """What `save_model` wrote, ready to run; raises BundleError as `load_model` does."""
    model = load_model(folder, preprocessor, device)
    return TorchRuntime(model, device, open_new_items(folder / WEIGHTS_FILE))


def _check_fit(folder: Path, model: TwoTower, state: Mapping[str, Tensor]) -> None:
    expected = model.state_dict()
    faults = [f"{name} is missing" for name in expected if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in expected]
    faults += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if faults:
        shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise BundleError(f"{folder / WEIGHTS_FILE} does not fit the config and preprocessing: {shown}. Use files of one training run")


class _evaluating:
    """Evaluation mode for a while; the mode before is restored."""

    def __init__(self, model: TwoTower) -> None:
        self._model = model
        self._was_training = model.training

    def __enter__(self) -> None:
        if self._was_training:  # it walks through all modules, which for one request is a share of the time
            self._model.eval()

    def __exit__(self, *_: object) -> None:
        if self._was_training:
            self._model.train()


def _numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
