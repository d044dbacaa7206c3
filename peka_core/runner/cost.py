"""Seconds and memory of a piece of work."""

import sys
import time
from typing import ClassVar

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class Cost:
    """Seconds and memory of a piece of work, as a context; seconds of inner pieces do not count.

    Memory of the process is the maximum since its start, because a process cannot reset that
    maximum. torch can reset the GPU's, so that is the maximum of the piece of work.
    """

    _running: ClassVar[list["Cost"]] = []

    def __enter__(self) -> "Cost":
        if self._running:
            self._running[-1]._note_gpu()
        self._running.append(self)
        self.gpu, self.inside, self.started = 0.0, 0.0, time.perf_counter()
        _reset_gpu()
        return self

    def __exit__(self, *_) -> None:
        self._note_gpu()
        self._running.pop()
        whole = time.perf_counter() - self.started
        self.seconds = whole - self.inside
        if self._running:
            self._running[-1].inside += whole
        _reset_gpu()  # what follows belongs to the outer piece again

    def facts(self) -> dict:
        """`{"seconds": s, "memory_mb": {"process": mb, "gpu": mb}}`; without unknown values."""
        memory = {"process": _process_mb(), "gpu": self.gpu}
        known = {name: round(mb, 1) for name, mb in memory.items() if mb}
        return {"seconds": round(self.seconds, 2), "memory_mb": known}

    def _note_gpu(self) -> None:
        if _uses_gpu():
            self.gpu = max(self.gpu, sys.modules["torch"].cuda.max_memory_allocated() / 2**20)


def _process_mb() -> float:
    if resource is None:
        return 0.0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, kB on Linux


def _reset_gpu() -> None:
    if _uses_gpu():
        sys.modules["torch"].cuda.reset_peak_memory_stats()


def _uses_gpu() -> bool:
    """Whether this process uses a GPU already; asking neither imports torch nor starts CUDA."""
    return "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized()
