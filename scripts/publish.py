"""Put a finished demo run and her2st's tables into the repository. `make publish` calls this.

    publish.py her2st   copies the tables of runs/her2st, which the chapters of the demo read
    publish.py demo     publishes runs/demo, which was empty before its run:

1. it removes from runs/demo what is large and can be made again: tiles, the other worlds, features,
   predictions and most adapters;
2. it compresses the rest and marks it as published;
3. it copies executed notebooks to notebooks/, tables to results/, two pictures to results/figures/;
4. it renews the tables of RESULTS.md and the numbers in prose (results_page.py, cite.py).
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import nbformat
import pandas as pd
import results_page

from peka_core import figures, ideas
from peka_core.cohort import open_cohort
from peka_core.common.files import write_whole
from peka_core.runner.provenance import commit
from peka_core.runner.run import PUBLISHED
from peka_core.runner.units import AGAIN

ROOT = Path(__file__).parents[1]
KEEP_ALWAYS = (
    "unit.json",
    "history.csv",
    "card.json",
    "scores.csv.gz",
    "genes.csv",
    "umap.csv",
    "quality.json",
    "hashes.npy",
)
LIMIT_MB = 5.0


def kept(unit: dict, name: str, main_digest: str) -> bool:
    """Whether a file of a unit is small or needed enough to be committed."""
    if name in KEEP_ALWAYS:
        return True
    shown = (
        unit["method"] == "bat" and unit["split"] == "patients/0" and unit["cohort"] == main_digest
    )
    return name.endswith(".safetensors") and shown  # one adapter to look at


def repack(path: Path, target: Path) -> None:
    """Write an AnnData file again: compressed, in HDF5's newer format, with fixed strings."""
    with h5py.File(path) as source, h5py.File(target, "w", libver="latest") as compact:
        compact.attrs.update(source.attrs)

        def copy(name: str, item) -> None:
            if isinstance(item, h5py.Group):
                compact.require_group(name).attrs.update(item.attrs)
                return
            value = (
                item.asstr()[()].astype("S") if item.dtype.kind == "O" and item.shape else item[()]
            )
            packed = (
                {"compression": "gzip", "compression_opts": 9, "chunks": item.shape}
                if item.shape and item.size
                else {}
            )
            compact.create_dataset(name, data=value, **packed).attrs.update(item.attrs)

        source.visititems(copy)


def shorten(path: Path, target: Path) -> None:
    """Write a table again with six decimals."""
    pd.read_csv(path, dtype=str, keep_default_na=False).map(_six).to_csv(target, index=False)


def _six(text: str) -> str:
    whole, point, decimals = text.partition(".")
    return (
        f"{float(text):.6f}"
        if point and len(decimals) > 6 and whole.lstrip("-").isdigit()
        else text
    )


def prune(run: Path) -> None:
    """Remove from a run what is large and can be made again."""
    digest = open_cohort(run / "cohort").digest
    for folder in (
        run / "cohort" / "patches",
        *run.glob("cohort_*"),
        run / "new_tissue",
        *run.glob("units/.*"),
        *run.glob(f"units/*{AGAIN}"),
        *run.rglob(".locks"),
    ):
        folder.unlink() if folder.is_file() else shutil.rmtree(folder, ignore_errors=True)
    for path in run.rglob("*.h5ad"):
        write_whole(path, lambda target, path=path: repack(path, target))
    for path in run.glob("units/*/*.csv"):
        write_whole(path, lambda target, path=path: shorten(path, target))
    for folder in sorted((run / "units").glob("*-*")):
        unit = json.loads((folder / "unit.json").read_text())["unit"]
        if unit["stage"] in ("features", "teacher"):
            shutil.rmtree(folder)
            continue
        for path in folder.iterdir():
            if not kept(unit, path.name, digest):
                path.unlink()


def copy_notebook(path: Path) -> None:
    """Copy an executed notebook without papermill's cell of parameters, so its defaults hold."""
    book = nbformat.read(path, as_version=4)
    book.cells = [
        cell for cell in book.cells if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    nbformat.write(book, ROOT / "notebooks" / path.name)


def copy_tables(name: str) -> None:
    """Copy the tables of a run as results/<run>_<table>.csv."""
    for table in (ROOT / "runs" / name / "results").glob("*.csv"):
        shutil.copy(table, ROOT / "results" / f"{name}_{table.name}")


def main() -> int:
    """Copy her2st's tables, or publish runs/demo."""
    if sys.argv[1:] == ["her2st"]:
        copy_tables("her2st")
        return 0
    demo = ROOT / "runs" / "demo"
    for notebook in sorted((demo / "notebooks").glob("*.ipynb")):
        copy_notebook(notebook)
    copy_tables("demo")
    (ROOT / "results" / "figures").mkdir(exist_ok=True)
    shutil.copy(demo / "figures" / "scores.png", ROOT / "results" / "figures" / "demo_scores.png")
    figures.use_style()
    figure = ideas.pipeline()
    figure.savefig(ROOT / "results" / "figures" / "pipeline.png", metadata={"Software": None})
    prune(demo)
    units = "\n".join(sorted(path.parent.name for path in demo.glob("units/*/unit.json")))
    (demo / PUBLISHED).write_text(
        f"Published at commit {commit()}. Nothing here is changed by opening it. Units:\n{units}\n",
        encoding="utf-8",
    )
    results_page.main(["--write"])
    cited = subprocess.run([sys.executable, ROOT / "scripts" / "cite.py", "--write"], check=False)
    tracked = [path for part in ("cohort", "units") for path in (demo / part).rglob("*")]
    size = sum(path.stat().st_size for path in tracked if path.is_file()) / 1e6
    print(f"{demo.relative_to(ROOT)}: {size:.1f} MB")
    if size > LIMIT_MB:
        print(f"more than {LIMIT_MB} MB: leave more out", file=sys.stderr)
        return 1
    return cited.returncode


if __name__ == "__main__":
    sys.exit(main())
