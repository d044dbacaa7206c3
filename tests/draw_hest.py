"""Small files drawn in the exact schema of HEST's own, with what a reader must find in them: for a
clone without ../shared.

`draw(folder)` writes the tree that HEST's code writes (spec.json of the originals tells it):
hest1k/{st, patches, metadata, wsis} with tiles in today's form, bench/FIXTASK with tiles in the
older form, golden/*.json with the expected values, and a vocabulary in the form of scFoundation's.
Every value is drawn. Nothing of `peka_core` is used: the few lines below are a second opinion on
its geometry and order.
Only the images are simpler than HEST's: one level, in strips.
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

POOL = [
    f"DRAWN{i:04d}" for i in range(560)
]  # each slide measures some of these genes, in an order of its own
N_VOCABULARY = 19_264
# id: um/px, (width, height) px, columns and rows of spots, pitch px, rows of the h5ad with a tile
# today, in the older form
SLIDES = {
    "FIX1": (0.69, (510, 1640), (2, 6), (298, 290), (0, 1, 2, 3, 6, 7, 11), (0, 1, 2, 6, 7, 11)),
    "FIX2": (0.686, (496, 1373), (2, 5), (280, 291), (1, 2, 3, 6, 7, 8), (2, 3, 7, 8)),
    "FIX3": (
        1.04,
        (659, 672),
        (4, 4),
        (165, 168),
        (1, 2, 4, 5, 12, 14),
        (5, 10, 14),
    ),  # and a spot far outside its image
}
# as Space Ranger and HEST's Visium reader have it; the others as Spatial Transcriptomics
PSEUDO_VISIUM = "FIX3"


def draw(folder: Path) -> Path:
    """Write all files below `folder`; about 6 MB, the same ones each time."""
    slides = {name: _slide(name, seed, *facts) for seed, (name, facts) in enumerate(SLIDES.items())}
    common = sorted(set.intersection(*(set(slide["adata"].var_names) for slide in slides.values())))
    genes = sorted(
        np.random.default_rng(9).choice(common, 20, replace=False).tolist()
    )  # in the alphabet's order, as HEST's
    for name, slide in slides.items():
        _write_slide(folder, name, slide)
    _write_task(folder / "bench/FIXTASK", genes)
    samples = {}
    for name, slide in slides.items():
        order = [int(i) for i in SLIDES[name][5]]
        counts = pd.DataFrame(slide["counts"], slide["barcodes"], slide["adata"].var_names)[genes]
        own = [slide["barcodes"][i] for i in order]
        samples[name] = {
            "barcodes_in_h5_order": own,
            "raw_counts": counts.iloc[order].to_numpy().tolist(),
        }
    (folder / "golden/bench_FIXTASK.json").write_text(
        json.dumps({"genes": genes, "samples": samples})
    )
    names = [*POOL, *(f"unnamed_{i}" for i in range(N_VOCABULARY - len(POOL)))]
    pd.DataFrame({"gene_name": names, "index": range(N_VOCABULARY)}).to_csv(
        folder / "vocabulary.tsv", sep="\t", index=False
    )
    return folder


def _slide(name, seed, um_per_px, size, grid, pitch, today, older) -> dict:
    """Image, counts and tiles of one slide, in memory."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    image = cv2.blur(image, (3, 3)).repeat(4, 0).repeat(4, 1)
    image = np.ascontiguousarray(image[: size[1], : size[0]])
    place = np.array([(x, y) for x in range(grid[0]) for y in range(grid[1])])  # (n, 2)
    centres = 100.0 + place * pitch + rng.uniform(-9, 9, place.shape).round(2)
    if name == PSEUDO_VISIUM:
        centres -= (75, 40)  # tiles of the first column leave the image
        place, centres = np.vstack([[30, 30], place]), np.vstack([[1969.3, 77.3], centres])
    n, genes = len(centres), rng.permutation(POOL)[: 505 + 15 * seed]
    bright = (
        image.mean(2)[
            centres[:, 1].astype(int).clip(0, size[1] - 1),
            centres[:, 0].astype(int).clip(0, size[0] - 1),
        ]
        / 128
    )
    follows = np.arange(len(genes)) % 3 == 0
    counts = rng.poisson(
        rng.gamma(1.0, 3.0, len(genes)) * np.where(follows, bright[:, None], 1.0)
    )  # (n, G)
    counts[0 if name == "FIX1" else 3] = 0  # a spot without counts; in FIX1 one that has a tile
    if name == PSEUDO_VISIUM:
        barcodes = ["".join(rng.choice(list("ACGT"), 16)) + "-1" for _ in range(n)]
    else:
        barcodes = [f"{18 + x:03d}x{20 + y:03d}" for x, y in place]
    adata = _adata(name, counts, genes, barcodes, place, centres, image)
    now, then = (
        _tiles(image, centres[list(rows)], um_per_px, old)
        for rows, old in ((today, False), (older, True))
    )
    return {"image": image, "counts": counts, "barcodes": barcodes, "adata": adata,
        "um_per_px": um_per_px, "centres": centres,
            "today": (today, *now), "older": (older, *then)}  # fmt: skip


def _tiles(image, centres, um_per_px, older) -> tuple[np.ndarray, np.ndarray]:
    """Tiles (n, 224, 224, 3) and coords (n, 2) by the rule of a generation: top-left (x, y), or
    centre (Y, X).
    """
    wide, side, tiles, coords = (
        np.pad(image, ((400, 400), (400, 400), (0, 0))),
        int(112 / um_per_px + 0.5),
        [],
        [],
    )
    for x, y in centres:
        half = side // 2 if older else int(112 / um_per_px / 2)
        left, top = (int(x) - half, int(y) - half) if older else (int(x - half), int(y - half))
        crop = wide[top + 400 : top + 400 + side, left + 400 : left + 400 + side]
        tiles.append(
            cv2.resize(
                crop, (224, 224), interpolation=cv2.INTER_CUBIC if older else cv2.INTER_LINEAR
            )
        )
        coords.append((int(y), int(x)) if older else (left, top))
    return np.stack(tiles), np.array(coords, dtype=np.int64)


def _adata(name, counts, genes, barcodes, place, centres, image) -> ad.AnnData:
    """What HEST keeps of a slide: counts, positions, quality control, and a small image."""
    visium = name == PSEUDO_VISIUM
    x = sparse.csr_matrix(counts, dtype=np.float32) if visium else counts.astype(np.int64)
    obs = pd.DataFrame({
        "array_row": place[:, 1 if visium else 0],
        "array_col": place[:, 0 if visium else 1] * (4 if visium else 1),
        "pxl_row_in_fullres": centres[:, 1], "pxl_col_in_fullres": centres[:, 0],
        "in_tissue": (counts.sum(1) > 0).astype(np.int64) if visium else np.ones(len(counts), bool),
    }, index=barcodes)  # fmt: skip
    adata = ad.AnnData(x, obs, pd.DataFrame(index=list(genes)), obsm={"spatial": centres})
    if visium:
        adata.var["gene_ids"] = [f"FIXTURE{i:05d}" for i in range(len(genes))]
        for column, word in (("feature_types", "Gene Expression"), ("genome", "GRCh38")):
            adata.var[column] = pd.Categorical([word] * len(genes))
    _quality_control(adata, counts)
    scale = 300 / max(image.shape)
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    factors = {"spot_diameter_fullres": 60.0, "tissue_downscaled_fullres_scalef": scale}
    adata.uns["spatial"] = {
        "ST": {"images": {"downscaled_fullres": small}, "scalefactors": factors}
    }
    return adata


def _quality_control(adata: ad.AnnData, counts: np.ndarray) -> None:
    """The columns of scanpy's calculate_qc_metrics, in its order; shares of a spot without counts
    are NaN.
    """
    for table, axis, what, others in (
        (adata.obs, 1, "n_genes_by_counts", ""),
        (adata.var, 0, "n_cells_by_counts", "mean"),
    ):
        table[what], total = (counts > 0).sum(axis), counts.sum(axis)
        if others:
            mean = counts.mean(axis)
            table["mean_counts"], table["log1p_mean_counts"] = mean, np.log1p(mean)
            table["pct_dropout_by_counts"] = 100 * (1 - table[what] / len(counts))
        else:
            table["log1p_n_genes_by_counts"] = np.log1p(table[what])
        table["total_counts"], table["log1p_total_counts"] = total, np.log1p(total.astype(float))
    best, total = -np.sort(-counts, axis=1), counts.sum(1)
    for k in (50, 100, 200, 500):
        shares = np.divide(
            100.0 * best[:, :k].sum(1), total, out=np.full(len(total), np.nan), where=total > 0
        )
        adata.obs[f"pct_counts_in_top_{k}_genes"] = shares


def _write_slide(folder: Path, name: str, slide: dict) -> None:
    """The files of one slide in both generations, its metadata, and what a reader must find."""
    parts = [f"hest1k/{part}" for part in ("st", "patches", "metadata", "wsis")]
    for part in (*parts, "bench/FIXTASK/adata", "bench/FIXTASK/patches", "golden"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for part in ("hest1k/st", "bench/FIXTASK/adata"):
        slide["adata"].copy().write_h5ad(folder / part / f"{name}.h5ad")
    assert cv2.imwrite(str(folder / f"hest1k/wsis/{name}.tif"), slide["image"][..., ::-1])
    um, side = slide["um_per_px"], int(112 / slide["um_per_px"] + 0.5)
    attrs = {
        "downsample": 0.5 / um,
        "patch_size_src": side,
        "patch_size_target": 224,
        "pixel_size": um,
    }
    older = {"factor": 0.5 / um, "patch_size": side}
    golden = {
        "pixel_size_um": um,
        "n_spots_h5ad": len(slide["counts"]),
        "barcodes_h5ad": slide["barcodes"],
    }
    for part, key, own in (("hest1k", "today", attrs), ("bench/FIXTASK", "older", older)):
        rows, tiles, coords = slide[key]
        barcodes = [slide["barcodes"][i] for i in rows]
        _write_patches(folder / part / f"patches/{name}.h5", tiles, coords, barcodes, own)
        digests = [hashlib.sha256(tile.tobytes()).hexdigest() for tile in tiles]
        found = [
            {"barcode": b, "coords": c.tolist(), "sha256": d}
            for b, c, d in zip(barcodes, coords, digests)
        ]
        golden["patches_h5" if key == "today" else "legacy_patches_h5"] = {"rows": found}
    metadata = {
        "pixel_size_um_embedded": None, "pixel_size_um_estimated": um,
        "spots_under_tissue": len(slide["counts"]), "id": name,
        "organ": "Breast", "species": "Homo sapiens", "patient": float("nan"),
        "treatment_comment": float("nan"),
    }  # fmt: skip
    (folder / f"hest1k/metadata/{name}.json").write_text(
        json.dumps(metadata, indent=3)
    )  # with bare NaN, as HEST's
    counts_sha256 = hashlib.sha256(slide["counts"].astype("<i8").tobytes()).hexdigest()
    names_sha256 = hashlib.sha256("\n".join(slide["adata"].var_names).encode()).hexdigest()
    golden |= {
        "no_patch": [
            {"barcode": b} for i, b in enumerate(slide["barcodes"]) if i not in slide["today"][0]
        ],
        "obsm_spatial": slide["centres"].tolist(),
        "h5ad": {
            "X_int64_C_order_sha256": counts_sha256,
            "var_names_sha256_newline_joined": names_sha256,
            "counts_per_spot": slide["counts"].sum(1).tolist(),
        },
    }
    (folder / f"golden/{name}.json").write_text(json.dumps(golden))


def _write_patches(path: Path, tiles, coords, barcodes, attrs) -> None:
    with h5py.File(path, "w") as file:
        images = file.create_dataset(
            "img", data=tiles, chunks=(1, 224, 224, 3), maxshape=(None, 224, 224, 3)
        )
        file.create_dataset("coords", data=coords, chunks=(1, 2), maxshape=(None, 2))
        names = np.array(barcodes, dtype=object).reshape(-1, 1)
        file.create_dataset(
            "barcode", data=names, dtype=h5py.string_dtype(), chunks=(1, 1), maxshape=(None, 1)
        )
        images.attrs.update(attrs)


def _write_task(task: Path, genes: list[str]) -> None:
    """Splits and target genes of the task directory; FIX1 and FIX2 are of one patient."""
    (task / "splits").mkdir(parents=True)
    for i, test in enumerate((["FIX3"], ["FIX2", "FIX1"])):
        for side, ids in (
            ("test", test),
            ("train", [s for s in ("FIX3", "FIX2", "FIX1") if s not in test]),
        ):
            lines = [f"{s},patches/{s}.h5,adata/{s}.h5ad" for s in ids]
            (task / f"splits/{side}_{i}.csv").write_text(
                "\n".join(["sample_id,patches_path,expr_path", *lines]) + "\n"
            )
    (task / "var_50genes.json").write_text(json.dumps({"genes": genes}))


# ---- the index
# ---------------------------------------------------------------------------------------------

COLUMNS = [
    "dataset_title",
    "id",
    "image_filename",
    "organ",
    "disease_state",
    "oncotree_code",
    "species",
    "patient",
    "st_technology",
    "data_publication_date",
    "license",
    "study_link",
    "download_page_link1",
    "inter_spot_dist",
    "spot_diameter",
    "spots_under_tissue",
    "preservation_method",
    "nb_genes",
    "treatment_comment",
    "pixel_size_um_embedded",
    "pixel_size_um_estimated",
    "magnification",
    "fullres_px_width",
    "fullres_px_height",
    "tissue",
    "disease_comment",
    "subseries",
    "hest_version_added",
]


def write_index(path: Path, rows: list[dict]) -> Path:
    """An index as HEST's: 28 columns, byte order mark, LF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, lineterminator="\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    return path


def row(sample: str, spots: int = 14, um_per_px: float = 0.5, **other) -> dict:
    """A line of an index: a Visium slide of human breast without a patient (three spaces); its
    embedded pixel size is nonsense.
    """
    values = dict.fromkeys(COLUMNS, "") | {
        "dataset_title": f"study of {sample}", "id": sample, "organ": "Breast",
        "species": "Homo sapiens", "patient": "   ",
        "st_technology": "Visium", "spots_under_tissue": str(spots),
        "pixel_size_um_estimated": str(um_per_px),
        "pixel_size_um_embedded": "31.75", "fullres_px_width": "4000", "fullres_px_height": "100",
    }  # fmt: skip
    return values | other


def draw_papers_index(path: Path, cohorts: dict, groups: pd.DataFrame) -> Path:
    """An index with as many slides and spots of each cohort as the paper's, under the ids of our
    own table of groups in its order.

    Copies have as many spots as their originals; 13 slides list a whole array of 4,992 spots, one
    of breast and 12 of liver.
    """
    rows, start = (
        [
            row("NOTOURS1", organ="Lung", species="Mus musculus"),
            row("NOTOURS2", st_technology="Xenium"),
        ],
        0,
    )
    for name, rules in cohorts.items():
        own = groups.iloc[start : start + rules.slides]
        start += rules.slides
        spots = {"TENX23": 4325, "TENX24": 4325, "TENX39": 4992} if name == "breast" else {}
        spots |= dict.fromkeys(own.sample_id[:12], 4992) if name == "liver" else {}
        rest, left = [s for s in own.sample_id if s not in spots], rules.spots - sum(spots.values())
        spots |= {s: left // len(rest) for s in rest}
        copies = {*groups.sample_id[groups.duplicate_of != ""], *groups.duplicate_of}
        alone = next(s for s in reversed(rest) if s not in copies)
        spots[alone] += left % len(rest)
        for line in own.itertuples():
            more = {
                "patient": line.patient if line.basis == "index" else "   ",
                "dataset_title": f"study of {name}",
            }
            rows.append(
                row(
                    line.sample_id,
                    spots[line.sample_id],
                    organ=rules.organ,
                    oncotree_code=rules.oncotree,
                    **more,
                )
            )
    return write_index(path, rows)
