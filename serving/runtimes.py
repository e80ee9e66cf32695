"""Which library runs the towers: ONNX Runtime on CPUs, torch where it is asked for, on a GPU, and for bundles without ONNX towers."""

import importlib

from serving.onnx_runtime import OnnxRuntime
from towers.bundle import Bundle
from towers.encoder import Encoder, Runtime
from towers.errors import BundleError, ConfigError
from towers.lookups import time_inputs
from towers.preprocess import Preprocessor

_TORCH = "serving.torch_runtime"
"""Imported by name and only when it is needed: serving installs without torch."""


def open_runtime(bundle: Bundle, preprocessor: Preprocessor, name: str = "auto", device: str = "cpu") -> Runtime:
    """The towers of a bundle, ready to run.

    Args:
        name: `auto`, `onnx` or `torch`; auto = onnx on a CPU where the bundle has ONNX towers, else torch.
        device: `cpu` or `cuda`; a GPU needs torch.

    Raises:
        BundleError: a part is missing or damaged.
        ConfigError: torch is needed and not installed, or there is no such device.
    """
    if name == "onnx" or (name == "auto" and device == "cpu" and bundle.has("onnx/user.onnx")):
        return OnnxRuntime(bundle, preprocessor)
    try:
        module = importlib.import_module(_TORCH)
    except ModuleNotFoundError as error:
        if name == "auto" and device == "cpu":
            raise BundleError(
                f"bundle {bundle.folder} holds no ONNX towers, and torch, which could do without, is not installed; run `towers export`"
                " with export.onnx=true"
            ) from error
        raise ConfigError(f"serving.runtime={name}, serving.device={device}: torch is not installed; install it, or leave both") from error
    runtime: Runtime = module.open_torch(bundle, preprocessor, device)
    return runtime


def open_encoder(bundle: Bundle, runtime: str = "auto", device: str = "cpu") -> Encoder:
    """A bundle's preprocessing and towers, ready for requests; arguments and errors as for `open_runtime`."""
    preprocessor, config = bundle.preprocessor(), bundle.model_config()
    preprocessor.hold()
    return Encoder(preprocessor, open_runtime(bundle, preprocessor, runtime, device), config.history.length, time_inputs(config))
