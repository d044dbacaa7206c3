"""Where a number comes from: versions, commit, device."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

PACKAGES = ("torch", "timm", "scanpy", "anndata", "scikit-learn", "numpy", "pandas")


@functools.cache
def commit() -> str:
    """Short git commit of the code, with `+` where tracked files differ from it; empty outside a checkout."""
    here = Path(__file__).parent
    try:
        head = _git(here, "rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def versions() -> dict[str, str]:
    """Installed versions of the packages that can move a number."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def best_device() -> str:
    """`cuda` where torch sees a GPU, otherwise `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


@functools.cache
def device_name() -> str:
    """GPU name where torch sees one, otherwise CPU model and thread count."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_cpu_model()}, {torch.get_num_threads()} threads"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def provenance() -> dict:
    """Version of this package, commit, Python, packages and device, for `unit.json` and tables."""
    return {
        "peka_core": importlib.metadata.version("peka-core"),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions(),
        "device": device_name(),
    }
