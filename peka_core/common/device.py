"""Devices, precision, and the versions of the packages that can move a number.

torch is imported on first use.
"""

import contextlib
import functools
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .errors import PekaError

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "timm", "scanpy", "anndata", "scikit-learn", "numpy", "pandas")


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions of the packages that can move a number."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def best_device() -> str:
    """`cuda` if torch sees a GPU, otherwise `cpu`; under torchrun, `cuda:N` of this worker."""
    own = f":{os.environ['LOCAL_RANK']}" if "TORCHELASTIC_RUN_ID" in os.environ else ""
    return f"cuda{own}" if _has_gpu() else "cpu"


def check_device(device: str) -> str:
    """Return the name of a device that this machine has; `auto` becomes the best one.

    Under torchrun, `cuda` becomes the GPU of this worker.

    Raises:
        PekaError: the machine does not have it, or it is none of `cpu`, `cuda` and `cuda:N`.
    """
    if device == "auto" or (device == "cuda" and _has_gpu()):
        device = best_device()
    kind, _, number = str(device).partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise PekaError(f"device {device!r} is unknown; expected cpu, cuda, or cuda:N for GPU N")
    if kind == "cuda" and not _has_gpu():
        raise PekaError(
            "device cuda: torch sees no GPU here (see `peka doctor`). Use --device cpu."
        )
    if kind == "cuda" and int(number or 0) >= (gpus := _count_gpus()):
        raise PekaError(f"device {device!r}: torch sees {gpus} GPU(s), numbered from 0")
    return str(device)


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


@functools.cache
def _has_gpu() -> bool:
    """Whether torch sees a GPU; torch is not imported if Linux has no device file of a GPU."""
    if sys.platform == "linux" and not any(
        Path(f"/dev/{name}").exists() for name in ("nvidiactl", "dxg", "kfd")
    ):
        return False
    import torch

    return torch.cuda.is_available()


@functools.cache
def device_name(device: str = "") -> str:
    """Name of the GPU, or CPU model and number of cores; by default of the best device."""
    if (device or best_device()).startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device if ":" in device else None)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or platform.machine()
    return f"{model}, {cores()} cores"


def cores() -> int:
    """Number of CPU cores that this process may use, which a scheduler may have limited."""
    limited = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if limited else os.cpu_count() or 1


def has_bfloat16(device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (CPU: AVX512_BF16 or AMX)."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def product_type(device, precision: str = "bfloat16") -> "torch.dtype":
    """Type of products under `autocast`: bfloat16 if asked for and the device has it."""
    import torch

    half = precision == "bfloat16" and has_bfloat16(device)
    return torch.bfloat16 if half else torch.float32


def autocast(device, precision: str = "bfloat16") -> contextlib.AbstractContextManager:
    """bfloat16 autocast where `product_type` says so, otherwise full float32.

    On a GPU, cuDNN's convolutions round to TF32 (ten bits) by default, which changes features by
    1e-3. This function switches that off.
    """
    import torch

    kind = torch.device(device).type
    if (dtype := product_type(device, precision)) != torch.float32:
        return torch.autocast(kind, dtype=dtype)
    return (
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        if kind == "cuda"
        else contextlib.nullcontext()
    )
