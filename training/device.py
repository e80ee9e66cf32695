"""What torch runs on: the one reading of trainer.device and loss.precision."""

import torch

from towers.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device that trainer.device names; auto takes a GPU where there is one.

    Raises:
        ConfigError: cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device: got cuda, and torch finds no GPU here. Use trainer.device=auto, or a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def choose_half(precision: str, device: torch.device) -> tuple[bool, str]:
    """Whether the loss multiplies in bf16, and what to say of it; hardware that would only emulate bf16 stays with fp32."""
    able = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_multiplies_bf16()
    half = able and precision != "fp32"
    return half, "bf16 products" if half else "fp32 products" + (", as this processor has none in bf16" if precision == "bf16" else "")


def _cpu_multiplies_bf16() -> bool:
    # torch has no public question for it; the private one has kept its name since 2.4
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
