"""Small files in the exact schema of HEST's own, with what a reader must find in them.

`draw(folder)` writes what HEST's code writes: hest1k/{st, patches, metadata, wsis} with tiles in
today's form, bench/FIXTASK with tiles in the older form, golden/*.json with the expected values,
and a vocabulary in the form of scFoundation's. Nothing of `peka_core` is used: the few lines below
are a second opinion on its geometry and order.
"""

import hashlib
import json
from pathlib import Path

import anndata as ad
import cv2
import h5py
import numpy as np
import pandas as pd
from scipy import sparse

POOL = [f"DRAWN{i:04d}" for i in range(560)]  # each slide measures some, in an order of its own
# id: um/px, (width, height) px, columns and rows of spots, pitch px, rows of the h5ad with a tile
# today, in the older form
SLIDES = {
    "FIX1": (0.69, (510, 1640), (2, 6), (298, 290), (0, 1, 2, 3, 6, 7, 11), (0, 1, 2, 6, 7, 11)),
    "FIX2": (0.686, (496, 1373), (2, 5), (280, 291), (1, 2, 3, 6, 7, 8), (2, 3, 7, 8)),
    "FIX3": (1.04, (659, 672), (4, 4), (165, 168), (1, 2, 4, 5, 12, 14), (5, 10, 14)),
}
VISIUM = "FIX3"  # as Space Ranger writes it, with a spot far outside; the others are ST
SPLITS = {"test_0": ["FIX3"], "train_0": ["FIX2", "FIX1"]}  # FIX1 and FIX2 are of one patient
SPLITS |= {"test_1": SPLITS["train_0"], "train_1": SPLITS["test_0"]}
PARTS = ("st", "patches", "metadata", "wsis")


def draw(folder: Path) -> Path:
    """Write all files below `folder`; about 6 MB, the same ones each time."""
    task = folder / "bench/FIXTASK"
    places = [*(folder / "hest1k" / part for part in PARTS), folder / "golden"]
    for place in (*places, task / "adata", task / "patches", task / "splits"):
        place.mkdir(parents=True)
    slides = [_draw_slide(folder, name, seed) for seed, name in enumerate(SLIDES)]
    genes = sorted(set.intersection(*(set(adata.var_names) for adata in slides)))[:20]
    (task / "var_50genes.json").write_text(json.dumps({"genes": genes}))
    for name, ids in SPLITS.items():
        lines = [f"{s},patches/{s}.h5,adata/{s}.h5ad" for s in ids]
        text = "\n".join(["sample_id,patches_path,expr_path", *lines, ""])
        (task / f"splits/{name}.csv").write_text(text)
    words = [*POOL, *(f"unnamed_{i}" for i in range(19_264 - len(POOL)))]
    vocabulary = pd.DataFrame({"gene_name": words, "index": range(len(words))})
    vocabulary.to_csv(folder / "vocabulary.tsv", sep="\t", index=False)
    return folder


def _draw_slide(folder: Path, name: str, seed: int) -> ad.AnnData:
    """Write the files of one slide in both generations, and what a reader must find."""
    um_per_px, size, grid, pitch, *tiled = SLIDES[name]
    rng, visium = np.random.default_rng(seed), name == VISIUM
    image = rng.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    image = cv2.blur(image, (3, 3)).repeat(4, 0).repeat(4, 1)
    image = np.ascontiguousarray(image[: size[1], : size[0]])
    place = np.array([(x, y) for x in range(grid[0]) for y in range(grid[1])])  # (n, 2)
    centres = 100.0 + place * pitch + rng.uniform(-9, 9, place.shape).round(2)
    if visium:
        centres -= (75, 40)  # tiles of the first column leave the image
        place, centres = np.vstack([[30, 30], place]), np.vstack([[1969.3, 77.3], centres])
    n, genes = len(centres), rng.permutation(POOL)[: 505 + 15 * seed]
    counts = rng.poisson(rng.gamma(1.0, 3.0, len(genes)), (n, len(genes)))  # (n, G)
    counts[0 if name == "FIX1" else 3] = 0  # a spot without counts; in FIX1 one that has a tile
    barcodes = [f"{18 + x:03d}x{20 + y:03d}" for x, y in place]
    if visium:
        barcodes = ["".join(rng.choice(list("ACGT"), 16)) + "-1" for _ in range(n)]
    in_tissue = (counts.sum(1) > 0).astype(np.int64) if visium else np.ones(n, bool)
    columns = {"array_row": place[:, 1], "array_col": place[:, 0], "in_tissue": in_tissue}
    x = sparse.csr_matrix(counts, dtype=np.float32) if visium else counts.astype(np.int64)
    adata = ad.AnnData(x, pd.DataFrame(columns, barcodes), pd.DataFrame(index=list(genes)))
    adata.obsm["spatial"] = centres
    if visium:
        adata.var["gene_ids"] = [f"FIXTURE{i:05d}" for i in range(len(genes))]

    sha256 = lambda content: hashlib.sha256(content).hexdigest()
    golden = {
        "pixel_size_um": um_per_px, "n_spots_h5ad": n, "barcodes_h5ad": barcodes,
        "no_patch": [{"barcode": b} for i, b in enumerate(barcodes) if i not in tiled[0]],
        "obsm_spatial": centres.tolist(),
        "h5ad": {
            "X_int64_C_order_sha256": sha256(counts.astype("<i8").tobytes()),
            "var_names_sha256_newline_joined": sha256("\n".join(genes).encode()),
            "counts_per_spot": counts.sum(1).tolist(),
        },
    }  # fmt: skip
    side = int(112 / um_per_px + 0.5)
    now = {"patch_size_src": side, "patch_size_target": 224, "pixel_size": um_per_px}
    for key, rows, h5ad, attrs in (
        ("patches_h5", tiled[0], f"hest1k/st/{name}.h5ad", now | {"downsample": 0.5 / um_per_px}),
        ("legacy_patches_h5", tiled[1], f"bench/FIXTASK/adata/{name}.h5ad",
         {"factor": 0.5 / um_per_px, "patch_size": side}),
    ):  # fmt: skip
        adata.copy().write_h5ad(folder / h5ad)
        tiles, coords = _tiles(image, centres[list(rows)], um_per_px, key != "patches_h5")
        names = np.array([barcodes[i] for i in rows], object)
        with h5py.File((folder / h5ad).parents[1] / f"patches/{name}.h5", "w") as file:
            data = {"img": tiles, "coords": coords, "barcode": names[:, None]}
            for data_set, values in data.items():
                file[data_set] = values
            file["img"].attrs.update(attrs)
        golden[key] = {"rows": [
            {"barcode": b, "coords": c.tolist(), "sha256": sha256(tile.tobytes())}
            for b, c, tile in zip(names, coords, tiles)
        ]}  # fmt: skip
    (folder / f"golden/{name}.json").write_text(json.dumps(golden))
    assert cv2.imwrite(str(folder / f"hest1k/wsis/{name}.tif"), image[..., ::-1])
    metadata = {"pixel_size_um_estimated": um_per_px, "patient": float("nan")}
    # with a bare NaN, as HEST's
    (folder / f"hest1k/metadata/{name}.json").write_text(json.dumps(metadata))
    return adata


def _tiles(image, centres, um_per_px, older) -> tuple[np.ndarray, np.ndarray]:
    """Tiles (n, 224, 224, 3) and coords (n, 2) by a generation's rule: top-left (x, y), or centre
    (Y, X)."""
    wide, side = np.pad(image, ((400, 400), (400, 400), (0, 0))), int(112 / um_per_px + 0.5)
    how, tiles, coords = cv2.INTER_CUBIC if older else cv2.INTER_LINEAR, [], []
    for x, y in centres:
        half = side // 2 if older else int(112 / um_per_px / 2)
        left, top = (int(x) - half, int(y) - half) if older else (int(x - half), int(y - half))
        crop = wide[top + 400 : top + 400 + side, left + 400 : left + 400 + side]
        tiles.append(cv2.resize(crop, (224, 224), interpolation=how))
        coords.append((int(y), int(x)) if older else (left, top))
    return np.stack(tiles), np.array(coords, dtype=np.int64)


# ---- the index

# columns that a reader takes and that may be empty
BLANK = ("oncotree_code", "disease_state", "license", "study_link", "download_page_link1")


def write_index(home: Path, rows: list[dict]) -> dict:
    """Write an index as HEST's (with a byte order mark); return the options that name it."""
    text = pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    data = b"\xef\xbb\xbf" + text.encode()
    (home / "index.csv").write_bytes(data)
    kind = ("Breast", "Homo sapiens", "Visium")
    ours = [r for r in rows if (r["organ"], r["species"], r["st_technology"]) == kind]
    counts = [len(ours), sum(int(r["spots_under_tissue"]) for r in ours)]
    digest = hashlib.sha256(data).hexdigest()
    return {"index": "index.csv", "index_sha256": digest, "counts": counts}


def row(sample: str, spots: int = 14, um_per_px: float = 0.5, **other) -> dict:
    """A slide of human breast without a patient, and with a nonsensical embedded pixel size."""
    return dict.fromkeys(BLANK, "") | {
        "dataset_title": f"study of {sample}", "id": sample, "organ": "Breast",
        "species": "Homo sapiens", "patient": "   ", "st_technology": "Visium",
        "spots_under_tissue": str(spots), "pixel_size_um_estimated": str(um_per_px),
        "pixel_size_um_embedded": "31.75", "fullres_px_width": "4000", "fullres_px_height": "100",
    } | other  # fmt: skip
