"""New tissue of a drawn cohort's world, in the files that a laboratory gets: a Visium sample.

Space Ranger's folder `outs/` and the full-resolution image of one section. Patients are counted on
from those of the cohort, so they are new to every model that was trained on it, and their counts
follow the same law. The tissue is an island on glass, as on a real slide.
"""

import dataclasses
import json
from pathlib import Path

import cv2
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from ..common.files import write_json, write_whole
from . import drawing, law, painting
from .demo import UM_PER_PX

GLASS = np.array([242, 241, 243])  # RGB of the slide where there is no tissue
SPOTS = 400  # of the square from which the island is cut; about half of them are in tissue
ARRAY_ROWS, ARRAY_COLUMNS = 78, 128  # of a Visium slide: 4,992 positions
SPOT_UM = 65.0  # Space Ranger's spot_diameter_fullres is that of a theoretical spot of 65 um
HIRES, LOWRES = 2000, 600  # px, the longer side of Space Ranger's two small images
OUTLINE = 7  # purpose of the random stream of the island's outline


@dataclasses.dataclass(frozen=True)
class DrawnSample:
    """The files of a drawn sample."""

    folder: Path  # Space Ranger's folder, which has `outs/`
    image: Path  # full-resolution image, PNG, 0.5 um/px


def draw_visium(folder: str | Path, cohort: str | Path, patient: int, section: int = 1,
                spots: int = SPOTS) -> DrawnSample:  # fmt: skip
    """Draw a section of one more patient, and write it as Space Ranger 2 and a microscope would.

    Files that are there are kept: the full-resolution image is written last.

    Args:
        folder: where `outs/` and the image are written.
        cohort: a finished demo cohort, whose law and seed are used.
        patient: above the number of the cohort's patients, for a patient that it does not have.
        section: 1 or more.
        spots: of the square from which the island of tissue is cut.
    """
    folder, cohort = Path(folder), Path(cohort)
    sample = DrawnSample(folder, folder / f"patient{patient}_section{section}.png")
    if sample.image.exists():
        return sample
    seed = json.loads((cohort / "source.json").read_text(encoding="utf-8"))["options"]["seed"]
    plan, tissue = _island(drawing.plan_section(seed, patient, section, spots))
    image = painting.double(_on_glass(painting.paint(plan), tissue))  # (2h, 2w, 3), 0.5 um/px
    outs = folder / "outs"
    (outs / "spatial").mkdir(parents=True, exist_ok=True)
    inside = _in_tissue(plan, tissue)  # (n,)
    positions = _positions(plan, inside)
    stored = np.load(cohort / "law.npz")
    the_law = law.Law(*(stored[name] for name in ("genes", "group", "baseline", "loading")))
    z = (law.measure(plan) - stored["z_mean"]) / stored["z_sd"]  # (n, 8)
    counts = law.draw_counts(the_law, z, seed, patient, section)[inside]  # (m, G)
    barcodes = positions.loc[positions["in_tissue"] == 1, "barcode"].tolist()
    matrix = outs / "filtered_feature_bc_matrix.h5"
    write_whole(matrix, lambda path: _write_10x(path, counts, barcodes, the_law.genes))
    table = outs / "spatial" / "tissue_positions.csv"
    write_whole(table, lambda path: positions.to_csv(path, index=False))
    _write_small_images(outs / "spatial", image)
    write_whole(sample.image, lambda path: _write_png(path, image))
    return sample


def _island(plan: drawing.PlannedSection) -> tuple[drawing.PlannedSection, np.ndarray]:
    """The plan without the cells outside an island, and the island (h, w) float in 0..1.

    The outline has no symmetry, so that a turned or mirrored image can be noticed.
    """
    rng, (height, width) = drawing.stream(*plan.key, OUTLINE), plan.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    y, x = y - height / 2, x - width / 2
    angle, phases = np.arctan2(y, x), rng.uniform(0, 2 * np.pi, 3)
    waves = zip((1, 2, 3), (0.16, 0.14, 0.1), phases, strict=True)
    outline = 1 + sum(size * np.cos(k * angle + phase) for k, size, phase in waves)
    inside = 0.34 * min(height, width) * outline - np.hypot(x, y)  # um to the edge, (h, w)
    tissue = np.clip(inside / 4 + 0.5, 0, 1)
    column, row = plan.cells.xy.astype(int).T
    kept = tissue[row, column] > 0.5
    fields = {name: value[kept] for name, value in vars(plan.cells).items()}
    return dataclasses.replace(plan, cells=drawing.Cells(**fields)), tissue


def _on_glass(image: np.ndarray, tissue: np.ndarray) -> np.ndarray:
    """Painted section (h, w, 3) where there is tissue (h, w), glass elsewhere."""
    share = tissue[..., None]
    return np.rint(image * share + GLASS * (1 - share)).astype(np.uint8)


def _in_tissue(plan: drawing.PlannedSection, tissue: np.ndarray) -> np.ndarray:
    """Which spots (n,) lie on tissue."""
    column, row = plan.centres.astype(int).T
    return tissue[row, column] > 0.5


def _positions(plan: drawing.PlannedSection, inside: np.ndarray) -> pd.DataFrame:
    """Space Ranger's table of all 4,992 positions; those outside the image have no tissue.

    The drawn square is in the middle of the array. A position is named by its place in the array.
    """
    row, column = np.mgrid[:ARRAY_ROWS, :ARRAY_COLUMNS].reshape(2, -1)
    even = row % 2 == column % 2
    row, column = row[even], column[even]
    own = np.array([[int(v) for v in name.split("x")] for name in plan.barcodes])  # (n, 2)
    own_row, own_column = own[:, 0], 2 * own[:, 1] + own[:, 0] % 2
    shift_row = (ARRAY_ROWS - own_row.max()) // 4 * 2  # even, so that odd rows stay odd
    shift_column = (ARRAY_COLUMNS - own_column.max()) // 4 * 2
    pitch = np.array([50.0, 100 * np.sqrt(0.75)])  # um per column, per row
    place = np.stack([own_column + shift_column, own_row + shift_row], axis=1)  # (n, 2)
    origin = (plan.centres - place * pitch).mean(0)  # um
    centre = origin + np.stack([column, row], axis=1) * pitch  # (4992, 2) um
    there = set(map(tuple, place[inside].tolist()))
    in_tissue = [int(here in there) for here in zip(column.tolist(), row.tolist())]
    pixels = np.rint(centre / UM_PER_PX).astype(int)
    return pd.DataFrame({
        "barcode": [_barcode(r, c) for r, c in zip(row, column)], "in_tissue": in_tissue,
        "array_row": row, "array_col": column,
        "pxl_row_in_fullres": pixels[:, 1], "pxl_col_in_fullres": pixels[:, 0],
    })  # fmt: skip


def _barcode(row: int, column: int) -> str:
    """A name of 16 letters for a place in the array, as Space Ranger's barcodes look."""
    number, letters = int(row) * ARRAY_COLUMNS + int(column), ""
    for _ in range(16):
        number, digit = divmod(number, 4)
        letters += "ACGT"[digit]
    return f"{letters}-1"


def _write_10x(path: Path, counts: np.ndarray, barcodes: list[str], genes: np.ndarray) -> None:
    """Write counts (m, G) in the form of Space Ranger's h5: genes x barcodes, CSC."""
    columns = sparse.csr_matrix(counts, dtype=np.int32)  # CSR of spots x genes = CSC of its turn
    text = lambda values: np.array(list(values), dtype="S")
    with h5py.File(path, "w") as file:
        file.attrs["library_ids"] = text([path.name])
        matrix = file.create_group("matrix")
        matrix["barcodes"] = text(barcodes)
        matrix["data"], matrix["indices"] = columns.data, columns.indices.astype(np.int64)
        matrix["indptr"] = columns.indptr.astype(np.int64)
        matrix["shape"] = np.array(counts.shape[::-1], np.int32)
        features = matrix.create_group("features")
        features["id"] = text(f"DRAWN{i:011d}" for i in range(len(genes)))
        features["name"] = text(genes)
        features["feature_type"] = text(["Gene Expression"] * len(genes))
        features["genome"] = text(["drawn"] * len(genes))


def _write_small_images(folder: Path, image: np.ndarray) -> None:
    """Write Space Ranger's two small images and its scale factors."""
    scales = {
        name: side / max(image.shape) for name, side in (("hires", HIRES), ("lowres", LOWRES))
    }
    for name, scale in scales.items():
        size = tuple(round(side * scale) for side in image.shape[1::-1])
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        path = folder / f"tissue_{name}_image.png"
        write_whole(path, lambda path, small=small: _write_png(path, small))
    spot = SPOT_UM / UM_PER_PX
    factors = {f"tissue_{name}_scalef": scale for name, scale in scales.items()}
    factors |= {"spot_diameter_fullres": spot, "fiducial_diameter_fullres": spot * 105 / 65}
    write_json(folder / "scalefactors_json.json", factors)


def _write_png(path: Path, image: np.ndarray) -> None:
    """Write RGB uint8 (h, w, 3) as PNG, whatever the temporary name of the file ends in."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    assert done
    path.write_bytes(encoded.tobytes())
