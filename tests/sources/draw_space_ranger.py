"""Draw a small Space Ranger folder in the exact form of each version, and its microscope image."""

import gzip
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
from scipy import io, sparse

UM_PER_PX = 2.0
SIZE = 760, 700  # width and height of the image, px
GENES = 60
HEADER = [
    "barcode",
    "in_tissue",
    "array_row",
    "array_col",
    "pxl_row_in_fullres",
    "pxl_col_in_fullres",
]


@dataclass
class Drawn:
    """A drawn sample; `positions` has the columns of Space Ranger's table."""

    folder: Path  # with outs/
    spatial: Path
    image: Path
    counts: np.ndarray  # (n, G) of the barcodes below
    barcodes: list[str]
    positions: pd.DataFrame

    def words(self, cohort, sample="s1", patient="P1", **more) -> list[str]:
        """The command line that imports this sample."""
        given = {"image": self.image, "sample": sample, "patient": patient, "cohort": cohort} | more
        options = [f"--{k.replace('_', '-')}={v}" for k, v in given.items() if v is not None]
        return ["import", "visium", str(self.folder), *options]


def on_tissue(x, y):
    """Whether places (px) lie in an L, which has no symmetry."""
    return (x > 90) & (y > 80) & (((x < 330) & (y < 620)) | ((x < 690) & (y < 260)))


def draw_image(path: Path, seed: int = 0) -> Path:
    """Purple noise in the L, glass elsewhere."""
    rng, (width, height) = np.random.default_rng(seed), SIZE
    y, x = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 242, np.uint8)
    cells = rng.integers(60, 200, (height // 4, width // 4, 1)).repeat(4, 0).repeat(4, 1)
    tissue = np.clip(cells + [30, -20, 40], 0, 255).astype(np.uint8)  # (h, w, 3) RGB
    image[on_tissue(x, y)] = tissue[on_tissue(x, y)]
    cv2.imwrite(str(path), image[..., ::-1])
    return path


def visium_positions() -> pd.DataFrame:
    """A small hexagonal array: 50 um a column and 86.6 um a row, both on every second place."""
    row, column = np.mgrid[:14, :26].reshape(2, -1)
    even = (row + column) % 2 == 0
    row, column = row[even], column[even]
    x, y = 60 + 50 / UM_PER_PX * column, 60 + 50 * np.sqrt(3) / UM_PER_PX * row
    names = [f"AAAC{r:02d}T{c:02d}-1" for r, c in zip(row, column)]
    inside = on_tissue(x, y).astype(int)
    return pd.DataFrame(dict(zip(HEADER, (names, inside, row, column, np.rint(y), np.rint(x)))))


def hd_positions(bin_um: float = 8.0) -> pd.DataFrame:
    """Square bins side by side."""
    n = int(1280 / bin_um)
    row, column = np.mgrid[:n, :n].reshape(2, -1)
    x, y = (50 + bin_um / UM_PER_PX * (i + 0.5) for i in (column, row))
    names = [f"s_{bin_um:03.0f}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column)]
    inside = on_tissue(x, y).astype(int)
    return pd.DataFrame(dict(zip(HEADER, (names, inside, row, column, y, x))))


def draw(
    folder: Path, version: int = 2, form: str = "h5", prefix: str = "", seed: int = 0
) -> Drawn:
    """Draw version 1, 2 or 3 (HD) with counts as `h5` or `mtx`."""
    rng, outs = np.random.default_rng(seed), folder / "outs"
    home = outs / "binned_outputs/square_008um" if version == 3 else outs
    spatial = home / "spatial"
    spatial.mkdir(parents=True)
    positions = hd_positions() if version == 3 else visium_positions()
    kept = positions[positions.in_tissue == 1]
    mean = rng.gamma(2, 1.5, GENES) * rng.uniform(0.3, 2, (len(kept), 1))
    counts = rng.poisson(mean * (0.02 if version == 3 else 1))  # (n, G)
    write = write_h5 if form == "h5" else write_mtx
    write(home / f"{prefix}filtered_feature_bc_matrix", counts, list(kept.barcode))
    write_positions(spatial, version, prefix, positions)
    scales = {"tissue_hires_scalef": 0.25, "tissue_lowres_scalef": 0.1}
    if version == 3:
        scales |= {"bin_size_um": 8.0, "microns_per_pixel": UM_PER_PX}
    scales["spot_diameter_fullres"] = (8 if version == 3 else 65) / UM_PER_PX
    (spatial / f"{prefix}scalefactors_json.json").write_text(json.dumps(scales))
    image = draw_image(folder / "slide.png", seed)
    for name in ("hires", "lowres"):
        size = tuple(round(s * scales[f"tissue_{name}_scalef"]) for s in SIZE)
        small = cv2.resize(cv2.imread(str(image)), size, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(spatial / f"{prefix}tissue_{name}_image.png"), small)
    return Drawn(folder, spatial, image, counts, list(kept.barcode), positions)


def write_positions(spatial: Path, version: int, prefix: str, positions: pd.DataFrame) -> None:
    """The table of positions as a version writes it."""
    for old in spatial.glob("*tissue_positions*"):
        old.unlink()
    if version == 1:
        file = spatial / f"{prefix}tissue_positions_list.csv"
        positions.to_csv(file, header=False, index=False)
    elif version == 2:
        positions.to_csv(spatial / f"{prefix}tissue_positions.csv", index=False)
    else:
        positions.to_parquet(spatial / f"{prefix}tissue_positions.parquet", engine="fastparquet")


def gene_table(names=None) -> list[list[str]]:
    """Ids, symbols and kinds of the drawn genes."""
    ids = [f"ENSG{i:011d}" for i in range(GENES)]
    names = [f"GENE{i // 2}" for i in range(GENES)] if names is None else names  # each twice
    return [ids, list(names), ["Gene Expression"] * GENES]


def write_h5(path: Path, counts: np.ndarray, barcodes: list[str], names=None) -> Path:
    """Counts as Space Ranger's HDF5: genes x barcodes, in columns."""
    x, path = sparse.csr_matrix(counts), path.with_name(f"{path.name.removesuffix('.h5')}.h5")
    text = lambda words: np.array(words, dtype="S")
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        parts = {"data": x.data, "indices": x.indices, "indptr": x.indptr}
        parts |= {"shape": np.array(counts.shape[::-1]), "barcodes": text(barcodes)}
        for name, values in parts.items():
            matrix[name] = values
        ids, symbols, kinds = gene_table(names)
        for name, words in (("id", ids), ("name", symbols), ("feature_type", kinds)):
            matrix[f"features/{name}"] = text(words)
        matrix["features/genome"] = text(["GRCh38"] * GENES)
        file.attrs["library_ids"] = text(["drawn"])
    return path


def write_mtx(folder: Path, counts: np.ndarray, barcodes: list[str]) -> None:
    """Counts as a folder in the Market Exchange format, packed."""
    folder.mkdir()
    io.mmwrite(folder / "matrix.mtx", sparse.csr_matrix(counts.T))
    pd.DataFrame(gene_table()).T.to_csv(
        folder / "features.tsv", sep="\t", header=False, index=False
    )
    (folder / "barcodes.tsv").write_text("\n".join(barcodes) + "\n")
    for file in list(folder.iterdir()):
        with file.open("rb") as plain, gzip.open(f"{file}.gz", "wb") as packed:
            shutil.copyfileobj(plain, packed)
        file.unlink()
