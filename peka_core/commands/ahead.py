"""On a CPU, a second process makes units that later chapters need, while the chapters run.

Chapter 3 aligns its students from the first to the last. The second process aligns them from the
last to the first, and embeds with each. A unit is locked while it is made, so each is made once.
Two processes with half of the cores each are faster than one with all cores, because a small
network does not keep several cores busy. If the second process fails, the chapters make what is
missing; runs/RUN/ahead.log has its messages.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import psutil

from ..common.device import cores
from ..common.errors import PekaError
from ..protocols import PROTOCOLS
from ..runner import stages
from ..runner.run import Run, open_run


@contextlib.contextmanager
def units_made_ahead(work: Run, parameters: dict) -> Iterator[None]:
    """Run the second process while the context lasts, if there are cores and memory for it.

    Args:
        parameters: of `open_run`, of types that JSON has.
    """
    if not _has_room(work):
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(cores() // 2)  # of the chapters, too
    command = [sys.executable, "-m", __name__, json.dumps(parameters)]
    with open(work.folder / "ahead.log", "wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.terminate()
            process.wait()
            del os.environ["OMP_NUM_THREADS"]


def _has_room(work: Run) -> bool:
    """Whether the run is on a CPU that has cores and memory for two processes."""
    if work.device != "cpu" or cores() < 2 or os.environ.get("OMP_NUM_THREADS"):
        return False
    if not (work.profile.methods or work.profile.all_methods):
        return False
    from .needs import needs  # imports torch, which takes seconds

    try:
        need = needs(work.profile, work.weights).ram
    except PekaError:  # the size of the cohort is not known yet
        return False
    return psutil.virtual_memory().available / 1e9 > 2 * need


def make_ahead(parameters: dict) -> None:
    """Align, embed and score from the last to the first; stop if the run has ended."""
    from ..studies import tables

    work, chapters = open_run(**parameters), os.getppid()
    for rung, split, world in reversed(work.alignments()):
        if os.getppid() != chapters:
            return
        stages.features(work.at(world), rung, split)
    for protocol in (PROTOCOLS[name] for name in ("strict", "peka_paper")):
        for _, predictor in reversed(tables.predictors(work, protocol)):
            if os.getppid() != chapters:
                return
            stages.score(work, predictor, protocol)


if __name__ == "__main__":
    make_ahead(json.loads(sys.argv[1]))
