"""Execute the chapters' notebooks with papermill."""

import os
import sys
import time
from pathlib import Path

from ..common import folders
from ..common.files import alone

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
WIDGET = "application/vnd.jupyter.widget-view+json"  # a progress bar


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
    """Remove timings, which differ between runs, and progress bars, which need a kernel."""
    import nbformat

    book = nbformat.read(path, as_version=4)
    for part in (book, *book.cells):
        for key in ("papermill", "widgets", "execution"):
            part.metadata.pop(key, None)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs = [out for out in cell.outputs if WIDGET not in out.get("data", {})]
    nbformat.write(book, path)
