"""Where a number comes from: versions, commit, device."""

import functools
import hashlib
import importlib.metadata
import math
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

from .files import PekaError, sha256, sha256_once

PACKAGES = ("torch", "timm", "scanpy", "anndata", "scikit-learn", "numpy", "pandas")
MINI_WEIGHTS = Path(__file__).parent / "weights" / "mini.safetensors"
MINI_NETWORK = "mini-1"  # its architecture, which `random` has too


@functools.cache
def commit() -> str:
    """Short git commit of the code, with `+` where tracked files differ from it; empty outside a checkout."""
    here = Path(__file__).parent
    if not (here.parent / "data_manifest.yaml").is_file():
        return ""  # installed: a repository around it is somebody else's
    try:
        head = _git(here, "rev-parse", "--short=10", "HEAD")
        return head + ("+" if _git(here, "status", "--porcelain", "--untracked-files=no", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, check=True
    ).stdout.strip()


@functools.cache
def versions() -> dict[str, str]:
    """Installed versions of the packages that can move a number."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def best_device() -> str:
    """`cuda` where torch sees a GPU, otherwise `cpu`."""
    return "cuda" if _has_gpu() else "cpu"


def check_device(device: str) -> str:
    """A device that is here and that this code can use: `cpu`, `cuda` or `cuda:N`; `auto` is the best one.

    Raises:
        PekaError: it is not here, or is of another kind.
    """
    kind, _, number = str(device).partition(":")
    if kind == "auto":
        return best_device()
    if kind not in ("cpu", "cuda") or (number and not number.isdecimal()):
        raise PekaError(f"device {device!r} is not one that this package runs on: cpu, cuda, or cuda:N with a GPU's number")
    if kind == "cuda" and not _has_gpu():
        raise PekaError("no CUDA here: --device cpu (torch sees no GPU; `peka doctor` shows what it sees)")
    if kind == "cuda" and int(number or 0) >= (gpus := _count_gpus()):
        raise PekaError(f"no device {device!r} here: torch sees {gpus} GPU(s), numbered from 0")
    return str(device)


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


@functools.cache
def _has_gpu() -> bool:
    """Ask torch, which takes seconds to import, unless Linux has no device file of any GPU driver."""
    if sys.platform == "linux" and not any(Path(f"/dev/{name}").exists() for name in ("nvidiactl", "dxg", "kfd")):
        return False
    import torch

    return torch.cuda.is_available()


def weights_digest(name: str, weights: str | Path | None = None, seed: int = 0) -> str:
    """Digest of an encoder's weights where it is known without loading them, else empty.

    A file's own sha256, printed where the user gave the file; the pinned or recorded one of a row of data_manifest.yaml;
    for `random` the name of its network and seed.

    Raises:
        PekaError: the user's file is not there.
    """
    if weights:
        digest = sha256_once(given_weights(name, weights))
        say_once(f"encoder {name}: weights {Path(weights).name}, sha256 {digest}")
        return digest
    if name == "mini":
        return sha256(MINI_WEIGHTS)
    if name == "random":
        return hashlib.sha256(f"{MINI_NETWORK}, untrained, seed {seed}".encode()).hexdigest()
    from .encoder_files import known_digest, rows

    return known_digest(rows()[name]) if name in rows() else ""


def given_weights(name: str, path: str | Path) -> Path:
    """The user's file for an encoder; PekaError where it is not there or may not be read."""
    if not Path(path).is_file():
        raise PekaError(f"no weights for encoder {name!r} at {path}: give the file as --weights {name}=PATH")
    if not os.access(path, os.R_OK):
        raise PekaError(f"{path}: weights for encoder {name!r} may not be read: ask their owner for the permission")
    return Path(path)


@functools.cache
def say_once(text: str, notice: bool = False) -> None:
    """Print a line the first time that it is said in this process; a notice goes to stderr."""
    print(text, file=sys.stderr if notice else sys.stdout, flush=True)


@functools.cache
def device_name(device: str = "") -> str:
    """Name of the GPU for `cuda`, CPU model and number of cores for `cpu`; of the best device where none is given."""
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


class Cost:
    """Seconds and largest memory of a piece of work, without those of pieces that were made inside it.

    Use as a context; pieces nest. Memory: of this process, and of torch on its GPU where it has one.
    """

    _running: list["Cost"] = []
    _counts_process = False  # whether the largest memory of the process is that since the last reset

    def __enter__(self) -> "Cost":
        if self._running:
            self._running[-1]._note_peak()
        self._running.append(self)
        self.peak, self.inside, self.started = {}, 0.0, time.perf_counter()
        _reset_peak()
        return self

    def __exit__(self, *_) -> None:
        self._note_peak()
        self._running.pop()
        whole = time.perf_counter() - self.started
        self.seconds = whole - self.inside
        if self._running:
            self._running[-1].inside += whole
        _reset_peak()  # what follows belongs to the outer piece again

    def facts(self) -> dict:
        """`{"seconds": ..., "memory_mb": {"process": ..., "gpu": ...}}`; an entry is missing where it cannot be known."""
        return {"seconds": round(self.seconds, 2), "memory_mb": self.peak}

    def _note_peak(self) -> None:
        for name, mb in _peak_mb().items():
            self.peak[name] = max(mb, self.peak.get(name, 0.0))


CLEAR_REFS = Path("/proc/self/clear_refs")  # Linux starts its count of a process's largest memory again when 5 is written here


def peak_can_be_reset() -> bool:
    """Whether the count of the process's largest memory can start again: under Linux, but not in every container."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    status = _status_mb()
    return status.get("VmHWM", math.inf) < status["VmRSS"] + 50  # a system that takes the write and does nothing does not count


def _status_mb() -> dict[str, float]:
    """Memory of this process as Linux tells it: `VmHWM` is the largest since the last reset, `VmRSS` what it is now."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {name.rstrip(":"): int(rest[0]) / 1024 for name, *rest in lines if name in ("VmHWM:", "VmRSS:")}


def _reset_peak() -> None:
    Cost._counts_process = peak_can_be_reset()
    if _uses_gpu():
        import torch

        torch.cuda.reset_peak_memory_stats()


def _peak_mb() -> dict[str, float]:
    peak = {"process": round(_status_mb()["VmHWM"], 1)} if Cost._counts_process else {}
    if _uses_gpu():
        import torch

        peak["gpu"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak


def _uses_gpu() -> bool:
    """Whether this process has put anything on a GPU; asking does not start CUDA, nor import torch."""
    return "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()


def provenance(device: str = "") -> dict:
    """Version of this package, commit, Python, packages and device (the best where none is given), for `unit.json` and tables."""
    return {
        "peka_core": importlib.metadata.version("peka-core"),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions(),
        "device": device_name(device),
    }
