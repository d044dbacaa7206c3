"""Messages that are printed during work."""

import functools
import sys


@functools.cache
def say_once(text: str, notice: bool = False) -> None:
    """Print a line once in a process; a notice goes to stderr."""
    print(text, file=sys.stderr if notice else sys.stdout, flush=True)
