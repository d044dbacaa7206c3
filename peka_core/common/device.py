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

from .errors import PekaError

PACKAGES = ("torch", "timm", "scanpy", "anndata", "scikit-learn", "numpy", "pandas")


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions of the packages that can move a number."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def best_device() -> str:
    """`cuda` where torch sees a GPU, otherwise `cpu`."""
    return "cuda" if _has_gpu() else "cpu"


def check_device(device: str) -> str:
    """A device that is here and that this code can use; `auto` becomes the best one.

    Raises:
        PekaError: it is not here, or is none of `cpu`, `cuda` and `cuda:N`.
    """
    kind, _, number = str(device).partition(":")
    if kind == "auto":
        return best_device()
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise PekaError(f"device {device!r} is none of cpu, cuda, and cuda:N with a GPU's number")
    if kind == "cuda" and not _has_gpu():
        raise PekaError(
            "no CUDA here: --device cpu (torch sees no GPU; `peka doctor` shows what it sees)"
        )
    if kind == "cuda" and int(number or 0) >= (gpus := _count_gpus()):
        raise PekaError(f"no device {device!r} here: torch sees {gpus} GPU(s), numbered from 0")
    return str(device)


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


@functools.cache
def _has_gpu() -> bool:
    """Ask torch, which is slow to import, unless Linux has no device file of any GPU driver."""
    if sys.platform == "linux" and not any(
        Path(f"/dev/{name}").exists() for name in ("nvidiactl", "dxg", "kfd")
    ):
        return False
    import torch

    return torch.cuda.is_available()


@functools.cache
def device_name(device: str = "") -> str:
    """Name of the GPU, or CPU model and number of cores; of the best device where none is given."""
    if (device or best_device()).startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device if ":" in device else None)
    return f"{_cpu_model()}, {os.cpu_count()} cores"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def has_bfloat16(device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (CPU: AVX512_BF16 or AMX)."""
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def autocast(device, precision: str = "bfloat16") -> contextlib.AbstractContextManager:
    """bfloat16 autocast where it is asked for and the device has it, otherwise full float32.

    By default, cuDNN's convolutions round to TF32 (ten bits) on a GPU, and features would be off by
    1e-3; that is switched off here.
    """
    import torch

    kind = torch.device(device).type
    if precision == "bfloat16" and has_bfloat16(device):
        return torch.autocast(kind, dtype=torch.bfloat16)
    return (
        torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        if kind == "cuda"
        else contextlib.nullcontext()
    )
