"""The towers in torch: the reference, what serves bundles without ONNX towers, and what runs on a GPU. The only door to torch here."""

import torch

from towers.bundle import Bundle
from towers.errors import ConfigError
from towers.preprocess import Preprocessor
from towers.runtime import CONFIG_FILE, WEIGHTS_FILE, TorchRuntime, load_runtime


def open_torch(bundle: Bundle, preprocessor: Preprocessor, device: str) -> TorchRuntime:
    """The bundle's model on `cpu` or `cuda`.

    Raises:
        BundleError: weights or config are missing or do not fit.
        ConfigError: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("serving.device: got cuda, and torch finds no GPU here; take serving.device=cpu")
    bundle.path(CONFIG_FILE)
    with bundle.reading(WEIGHTS_FILE):
        runtime = load_runtime(bundle.folder, preprocessor, device)
    torch.set_num_threads(1)  # one thread beats several for single requests, and worker processes must not fight over cores
    return runtime
