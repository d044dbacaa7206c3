"""Where things are: the folder of runs, the files that come with the code, the download cache."""

import os
from pathlib import Path

CHECKOUT = "data_manifest.yaml"  # a folder with this file is a checkout of the repository
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
    inside = (f for f in (here, *here.parents) if f.parent.name == "runs")
    return next((f.parents[1] for f in inside if (f / "run.json").exists()), here)


def bundled(name: str) -> Path:
    """A file or folder that comes with the code: `notebooks`, `results`, `data_manifest.yaml`, …

    It is taken from the checkout, or from the copy that `pip install .` puts into the package.
    """
    copy, folder = PACKAGE / "bundled" / name, root()
    if copy.exists() and not (folder / CHECKOUT).exists():
        return copy
    return folder / name if (folder / name).exists() else PACKAGE.parent / name


def results_folder() -> Path:
    """The published tables, which README and chapters read. A run keeps its tables elsewhere."""
    return bundled("results")


def cache_folder() -> Path:
    """The folder of downloads: PEKA_CACHE, or else the user's cache folder."""
    import pooch  # slow to import

    return Path(os.environ.get("PEKA_CACHE") or pooch.os_cache("peka"))
