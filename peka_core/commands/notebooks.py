"""Execute the chapters' notebooks with papermill, on a CPU two at a time.

A chapter makes the units that it needs, and a unit is locked while it is made, so two chapters
share this work. Two kernels with half of the cores each are faster than one with all cores, because
a small network does not keep several cores busy, and drawing and tables need one.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from ..common import folders
from ..common.device import cores
from ..common.files import alone
from . import interrupts

if TYPE_CHECKING:  # imports torch, which takes seconds
    from ..runner.run import Run

CHAPTERS = (
    "01_data",
    "02_teacher_embeddings",
    "03_alignment",
    "04_evaluation",
    "04b_worth",
    "05_figures",
    "06_new_tissue",
    "appendix",
)
TABLES_OF = {  # chapters that read tables of other chapters
    "04b_worth": {"04_evaluation"},
    "05_figures": {"04_evaluation"},
    "appendix": {"04b_worth"},
}
WAITING = "another process is making"  # said where a unit is locked (common/files.py)
WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar


def execute_chapters(work: "Run", parameters: dict) -> bool:
    """Execute all chapters into `notebooks/` of the run; return whether every cell ran.

    The first chapter builds the cohort, so it runs alone. Each other one starts when those whose
    tables it reads have ended. After a failure none starts, and the one beside it is finished.

    Args:
        parameters: of `open_run`.
    """
    books, folder = folders.bundled("notebooks"), work.folder / "notebooks"
    run_chapter = lambda name: execute(books / f"{name}.ipynb", folder, parameters)
    first, *waiting = CHAPTERS
    with _room_for_two(work.device, parameters) as has_room:
        if not run_chapter(first):
            return False
        at_a_time = 2 if has_room() else 1
    running, ended, failed = dict[Future, str](), {first}, ""
    with _threads(cores() // 2 if at_a_time == 2 else 0), ThreadPoolExecutor(at_a_time) as pool:
        try:
            while waiting or running:
                ready = [name for name in waiting if TABLES_OF.get(name, set()) <= ended]
                for name in ready[: at_a_time - len(running)]:
                    waiting.remove(name)
                    running[pool.submit(run_chapter, name)] = name
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    name = running.pop(future)
                    if future.result():
                        ended.add(name)
                    else:
                        waiting, failed = [], name
        except KeyboardInterrupt:
            interrupts.end_kernels()
            raise
    if failed and at_a_time == 2:  # the other chapter may have said something since
        print(f"The run ends because {failed} failed: its message is above.", file=sys.stderr)
    return not failed


@contextlib.contextmanager
def _room_for_two(device: str, parameters: dict) -> Iterator[Callable[[], bool]]:
    """A function that says whether there are cores and memory for two chapters at a time.

    Two chapters do not share a GPU. Another process finds out how much memory a chapter needs,
    because it imports torch, which takes half a GB and never gives it back.
    """
    if device != "cpu" or cores() < 2 or os.environ.get("OMP_NUM_THREADS"):
        yield lambda: False
        return
    code = f"from {__package__}.needs import print_ram; print_ram({json.dumps(parameters)!r})"
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "start_new_session": True}
    with subprocess.Popen([sys.executable, "-c", code], text=True, **pipes) as planner:
        psutil.Process(planner.pid).nice(10)  # the first chapter goes before
        # the last word: an encoder of the user's own may print, too
        need = lambda: float((planner.communicate()[0].split() or ["inf"])[-1])
        yield lambda: psutil.virtual_memory().available / 1e9 > 2 * need()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Give each kernel that starts meanwhile so many threads; 0 leaves it to the libraries."""
    if count:
        os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if count:
            del os.environ["OMP_NUM_THREADS"]


def execute(notebook: Path, folder: Path, parameters: dict) -> bool:
    """Execute one notebook into `folder`; return whether every cell ran.

    A notebook that fails is kept as `<name>.failed.ipynb`, and the message of its cell is printed
    last.
    """
    with alone(folder / notebook.name):
        return _execute(notebook, folder, parameters)


def _execute(notebook: Path, folder: Path, parameters: dict) -> bool:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    unfinished, failed = folder / f".{notebook.name}", folder / f"{notebook.stem}.failed.ipynb"
    started = time.perf_counter()
    print(f"{notebook.stem} …", flush=True)
    try:
        papermill.execute_notebook(
            notebook,
            unfinished,
            parameters=parameters,
            kernel_name="python3",
            cwd=working_folder(notebook),
            progress_bar=sys.stderr.isatty(),
            log_output=False,
            request_save_on_cell_execute=False,
            extra_arguments=["--IPKernelApp.log_level=50"],  # no warning about its own TCP ports
        )
        _clean(unfinished)
        os.replace(unfinished, folder / notebook.name)
    except DeadKernelError:
        if interrupts.KERNELS_ENDED.is_set():
            return False
        print(
            f"{notebook.name}: its process was killed, probably because the memory was full. "
            "Finished units are kept, so run the same command again. If it stops at the same "
            "point, choose a smaller batch: -p batch_size=32 --run NAME.",
            file=sys.stderr,
        )
        return False
    except PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":  # only the kernel received the signal
            raise KeyboardInterrupt from error
        os.replace(unfinished, failed)
        print(f"{notebook.name} failed; its cells are in {failed}", file=sys.stderr)
        print(f"cell {error.exec_count}: {error.ename}: {error.evalue}", file=sys.stderr)
        return False
    finally:
        unfinished.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    print(f"{notebook.stem}: {time.perf_counter() - started:.0f} s", flush=True)
    return True


def working_folder(notebook: Path) -> Path:
    """The folder in which a notebook runs: its own; for an installed one, the user's folder."""
    return folders.root() if notebook.is_relative_to(folders.PACKAGE) else notebook.parent


def _clean(path: Path) -> None:
    """Remove what differs between runs, timings and waiting, and bars, which need a kernel."""
    import nbformat

    book = nbformat.read(path, as_version=4)
    for part in (book, *book.cells):
        for key in ("papermill", "widgets", "execution"):
            part.metadata.pop(key, None)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if not _passes(out)]
    nbformat.write(book, path)


def _passes(output) -> bool:
    """Whether an output is a progress bar, or says nothing but that a kernel waited for another."""
    lines = output.get("text", "").splitlines()
    return (
        WIDGET in output.get("data", {}) or bool(lines) and all(WAITING in line for line in lines)
    )
