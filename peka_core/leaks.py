"""What crosses a split: patients, copies of tiles, and neighbours in the tissue; and which sections copy each other."""

import hashlib

import cv2
import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from .errors import PekaError
from .layout.patches import in_chunks
from .layout.sections import Section, read_spots
from .tiles import TileReader

SIDE = 8  # of the picture that is hashed
NEAR = 1.5  # neighbours are spots closer than this many times the pitch


def difference_hash(tiles) -> np.ndarray:
    """Perceptual hash of each tile, `(n,)` uint64: is a pixel of the 9 x 8 grey thumbnail brighter than its right neighbour?

    Copies have equal hashes; recompressed or slightly recoloured copies differ in a few of the 64 bits. Blank tiles look alike.
    """
    parts = [_hash(images) for images in in_chunks(tiles)]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def _hash(images: np.ndarray) -> np.ndarray:
    small = [
        cv2.resize(
            cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA
        )
        for image in images
    ]
    small = np.stack(small)  # (b, 8, 9)
    bits = (small[:, :, :-1] > small[:, :, 1:]).reshape(len(small), -1)  # (b, 64)
    return np.packbits(bits, axis=1).view(np.uint64).ravel()


def tile_digests(cohort) -> pd.Series:
    """sha256 of each section's tiles, index sample: equal where two sections have the same barcodes and pixels, in any order of rows.

    Reads every tile once, some hundred at a time.
    """
    return pd.Series(
        {section.sample: _digest(section) for section in cohort.sections}, dtype=object
    )


def _digest(section: Section) -> str:
    order = np.argsort(section.barcodes.astype(str))
    total = hashlib.sha256("\n".join(section.barcodes[order].astype(str)).encode())
    for images in in_chunks(_reader(section, order)):
        total.update(images)
    return total.hexdigest()


def _reader(section: Section, rows: np.ndarray) -> TileReader:
    """Tiles of some of a section's spots, in the order of `rows`."""
    if section.patches is None:
        raise PekaError(
            f"{section.sample}: no tiles here; expected patches/{section.sample}.h5. Build the cohort with its tiles."
        )
    return TileReader([(section.patches, section.tile_rows[rows])])


def compare_tiles(cohort, sample: str, original: str, at_most: int | None = None) -> dict:
    """The tiles of a section beside those of the section that it is said to copy, by barcode.

    Args:
        at_most: tiles to look at, spread evenly over the barcodes in common; None looks at all, some hundred at a time.

    Returns:
        of: the original; shared_barcodes: in common; tiles_compared; identical: those of them that are, byte for byte;
        mean_difference: over these tiles, in grey levels (0 to 255), None where no barcode is in common.
    """
    sections = [next(s for s in cohort.sections if s.sample == name) for name in (sample, original)]
    shared, *rows = np.intersect1d(*(s.barcodes.astype(str) for s in sections), return_indices=True)
    count = len(shared) if at_most is None else min(at_most, len(shared))
    pick = np.unique(np.linspace(0, len(shared) - 1, count).astype(int))
    pairs = zip(*(in_chunks(_reader(s, at[pick])) for s, at in zip(sections, rows)))
    differ = [
        np.abs(a.astype(np.int16) - b).mean(axis=(1, 2, 3)) for a, b in pairs
    ]  # grey levels, a chunk each
    differ = np.concatenate([np.zeros(0), *differ])  # (m,)
    return {
        "of": original, "shared_barcodes": len(shared), "tiles_compared": len(pick),
        "identical": int((differ == 0).sum()), "mean_difference": round(float(differ.mean()), 3) if len(pick) else None,
    }  # fmt: skip


def across_splits(cohort, splits, hashes: np.ndarray | None = None) -> pd.DataFrame:
    """One row a split: what training and test share.

    Columns: split, train, test (spots); patients_shared; copies (test spots whose tile's hash occurs in training);
    neighbours (test spots with a training spot of the same section within 1.5 times the section's pitch).

    Args:
        splits: `Split`s, e.g. of a protocol.
        hashes: of all tiles; None leaves the column copies undefined.
    """
    obs, near = cohort.obs, _neighbours(cohort)
    group = obs["group"].to_numpy()
    rows = []
    for split in splits:
        copies = (
            np.nan
            if hashes is None
            else int(np.isin(hashes[split.test], hashes[split.train]).sum())
        )
        beside = sum(bool(split.train[near[spot]].any()) for spot in np.flatnonzero(split.test))
        rows.append({
            "split": split.name, "train": int(split.train.sum()), "test": int(split.test.sum()),
            "patients_shared": len(set(group[split.train]) & set(group[split.test])), "copies": copies, "neighbours": beside,
        })  # fmt: skip
    return pd.DataFrame(rows)


def without_leaks(cohort, split, hashes: np.ndarray) -> dict[str, np.ndarray]:
    """Training masks with one leak after the other taken out: `as it is`, `no copies`, `no neighbours`, `no shared patients`."""
    obs, near = cohort.obs, _neighbours(cohort)
    train, test = split.train, split.test
    beside = np.zeros(len(train), bool)
    for spot in np.flatnonzero(test):
        beside[near[spot]] = True
    group = obs["group"].to_numpy()
    copies = np.isin(hashes, hashes[test])
    return {
        "as it is": train, "no copies": train & ~copies, "no neighbours": train & ~copies & ~beside,
        "no shared patients": train & ~copies & ~np.isin(group, group[test]),
    }  # fmt: skip


def _neighbours(cohort) -> list[np.ndarray]:
    """Rows of the spots around each spot, in its own section, within 1.5 times the section's median distance to the nearest."""
    samples = cohort.obs["sample"].to_numpy()
    spatial = np.concatenate(
        [read_spots(section)[1]["spatial"] for section in cohort.sections]
    )  # (n, 2); no counts are read
    found: list[np.ndarray] = [np.zeros(0, int)] * len(samples)
    for sample in pd.unique(samples):
        rows = np.flatnonzero(samples == sample)
        if len(rows) < 2:
            continue
        tree = cKDTree(spatial[rows])
        pitch = np.median(tree.query(spatial[rows], k=2)[0][:, 1])
        for row, beside in zip(rows, tree.query_ball_point(spatial[rows], NEAR * pitch)):
            found[row] = rows[[i for i in beside if rows[i] != row]]
    return found
