"""Where things lie: the folder of runs, what comes with the code, the cache of downloads."""

import os
from pathlib import Path

CHECKOUT = "data_manifest.yaml"  # the file by which a checkout is known


PACKAGE = Path(__file__).parents[1]


def root() -> Path:
    """The folder that holds `runs/`: the checkout above the working directory, or of the package.

    Without a checkout it is the working directory. A notebook that is opened inside a run
    (`runs/<run>/notebooks`) finds the folder around that `runs/`.
    """
    here = Path.cwd()
    for folder in (here, *here.parents, PACKAGE.parent):
        if (folder / CHECKOUT).exists() and folder != PACKAGE / "bundled":
            return folder
    return next(
        (
            f.parents[1]
            for f in (here, *here.parents)
            if f.parent.name == "runs" and (f / "run.json").exists()
        ),
        here,
    )


def bundled(name: str) -> Path:
    """A file or folder that comes with the code: `notebooks`, `results`, `data_manifest.yaml`, …

    The checkout's where there is one, else the copy that `pip install .` puts into the package.
    """
    copy, folder = PACKAGE / "bundled" / name, root()
    if copy.exists() and not (folder / CHECKOUT).exists():
        return copy
    return folder / name if (folder / name).exists() else PACKAGE.parent / name


def results_folder() -> Path:
    """The published tables, which README and chapters read. A run keeps its own in its folder."""
    return bundled("results")


def cache_folder() -> Path:
    """The folder where downloads are kept: PEKA_CACHE, else the user's cache folder."""
    import pooch  # slow to import

    return Path(os.environ.get("PEKA_CACHE") or pooch.os_cache("peka"))
