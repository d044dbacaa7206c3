"""Seconds and memory of a piece of work."""

import math
import sys
import time
from pathlib import Path


class Cost:
    """Seconds and largest memory of a piece of work, without those of pieces that were made inside it.

    Use as a context; pieces nest. Memory: of this process, and of torch on its GPU where it has one.
    """

    _running: list["Cost"] = []
    _counts_process = (
        False  # whether the largest memory of the process is that since the last reset
    )

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


CLEAR_REFS = Path(
    "/proc/self/clear_refs"
)  # Linux starts its count of a process's largest memory again when 5 is written here


def peak_can_be_reset() -> bool:
    """Whether the count of the process's largest memory can start again: under Linux, but not in every container."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    status = _status_mb()
    return (
        status.get("VmHWM", math.inf) < status["VmRSS"] + 50
    )  # a system that takes the write and does nothing does not count


def _status_mb() -> dict[str, float]:
    """Memory of this process as Linux tells it: `VmHWM` is the largest since the last reset, `VmRSS` what it is now."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {
        name.rstrip(":"): int(rest[0]) / 1024
        for name, *rest in lines
        if name in ("VmHWM:", "VmRSS:")
    }


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
