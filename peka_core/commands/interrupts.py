"""What the command line does after Ctrl-C, and when nobody reads its output any more."""

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import TextIO

import psutil

KERNELS_ENDED = threading.Event()  # a kernel that is dead now was killed on purpose
QUIET_SECONDS = 5  # after a first Ctrl-C, until kernels end and half-written files are removed


@contextlib.contextmanager
def interrupted_once() -> Iterator[None]:
    """Let the first Ctrl-C end the work, and ignore further ones during the clean-up."""
    KERNELS_ENDED.clear()
    before = signal.getsignal(signal.SIGINT)
    main_thread = threading.current_thread() is threading.main_thread()
    if before is not signal.default_int_handler or not main_thread:
        yield  # the caller ignores interrupts (nohup) or handles them itself
        return
    last = -math.inf

    def once(*_):
        nonlocal last
        if time.monotonic() - last > QUIET_SECONDS:
            last = time.monotonic()
            end_kernels()
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, once)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        logging.disable(logging.NOTSET)


def end_kernels() -> None:
    """Kill the notebook kernels of this process and the processes that they started, on purpose.

    A kernel would take seconds to shut down and print messages. jupyter_client starts each kernel
    in a session of its own; other children share our session and end with this process.
    """
    KERNELS_ENDED.set()
    logging.disable()  # nbclient would log each death
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if hasattr(os, "getsid") and os.getsid(process.pid) != os.getsid(0):
                process.kill()


class LastingStream:
    """A stream that takes text even after its reader has ended, as in `peka … | head`."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def __getattr__(self, name: str):
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the text; it is lost if there is no reader."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream; its buffer is lost if there is no reader."""
        self._try(self._stream.flush)

    def _try(self, call, *arguments) -> None:
        try:
            call(*arguments)
        except BrokenPipeError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())
