"""What torch runs on: the one reading of trainer.device, trainer.precision and loss.precision."""

import torch

from towers.errors import ConfigError
from training.distributed import Processes


def choose_device(name: str) -> torch.device:
    """The device that trainer.device names; auto takes a GPU where there is one.

    Raises:
        ConfigError: cuda is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("trainer.device: got cuda, and torch finds no GPU here. Use trainer.device=auto, or a CUDA build of torch")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def place_of(device: torch.device, processes: Processes) -> str:
    """What computes, in words: runs of the same settings in the same place end with the same bits."""
    threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"{device.type}{threads}" + (f" in {processes.size} processes" if processes.size > 1 else "")


def choose_autocast(precision: str, device: torch.device) -> tuple[bool, str]:
    """Whether the towers compute in bf16 (trainer.precision), and what to say of it. On a processor that only emulates bf16 they would be
    slower than in fp32, which they then stay in."""
    if precision != "bf16" or multiplies_bf16(device):
        return precision == "bf16", precision
    return False, f"fp32, as this {device.type} multiplies no bf16 (trainer.precision=bf16)"


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the hardware has bf16 products of its own."""
    return torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else _cpu_multiplies_bf16()


def choose_half(precision: str, device: torch.device) -> tuple[bool, str]:
    """Whether the loss multiplies in bf16, and what to say of it; hardware that would only emulate bf16 stays with fp32."""
    half = multiplies_bf16(device) and precision != "fp32"
    return half, "bf16 products" if half else "fp32 products" + (", as this processor has none in bf16" if precision == "bf16" else "")


def _cpu_multiplies_bf16() -> bool:
    # torch has no public question for it; the private one has kept its name since 2.4
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
