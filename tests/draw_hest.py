"""Small files in the exact schema of HEST's own, with what a reader must find in them.

`draw(folder)` writes the tree that HEST's code writes: hest1k/{st, patches, metadata, wsis} with
tiles in today's form, bench/FIXTASK with tiles in the older form, golden/*.json with the expected
values, and a vocabulary in the form of scFoundation's. Every value is drawn. Nothing of `peka_core`
is used: the few lines below are a second opinion on its geometry and order. Only the images are
simpler than HEST's: one level, in strips.
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
N_VOCABULARY = 19_264
# id: um/px, (width, height) px, columns and rows of spots, pitch px, rows of the h5ad with a tile
# today, in the older form
SLIDES = {
    "FIX1": (0.69, (510, 1640), (2, 6), (298, 290), (0, 1, 2, 3, 6, 7, 11), (0, 1, 2, 6, 7, 11)),
    "FIX2": (0.686, (496, 1373), (2, 5), (280, 291), (1, 2, 3, 6, 7, 8), (2, 3, 7, 8)),
    "FIX3": (1.04, (659, 672), (4, 4), (165, 168), (1, 2, 4, 5, 12, 14), (5, 10, 14)),
}
VISIUM = "FIX3"  # as Space Ranger writes it, with a spot far outside; the others are ST
PARTS = ("st", "patches", "metadata", "wsis")


def draw(folder: Path) -> Path:
    """Write all files below `folder`; about 6 MB, the same ones each time."""
    for part in (*(f"hest1k/{p}" for p in PARTS), "bench/FIXTASK/splits", "golden"):
        (folder / part).mkdir(parents=True)
    for part in ("adata", "patches"):
        (folder / "bench/FIXTASK" / part).mkdir()
    slides = {name: _slide(name, seed, *facts) for seed, (name, facts) in enumerate(SLIDES.items())}
    common = sorted(set.intersection(*(set(slide["adata"].var_names) for slide in slides.values())))
    genes = sorted(np.random.default_rng(9).choice(common, 20, replace=False).tolist())
    samples = {}
    for name, slide in slides.items():
        _write_slide(folder, name, slide)
        rows = list(SLIDES[name][5])
        raw = slide["adata"][rows, genes].to_df().astype(int).to_numpy().tolist()
        samples[name] = {
            "barcodes_in_h5_order": [slide["barcodes"][i] for i in rows],
            "raw_counts": raw,
        }
    golden = {"genes": genes, "samples": samples}
    (folder / "golden/bench_FIXTASK.json").write_text(json.dumps(golden))
    (folder / "bench/FIXTASK/var_50genes.json").write_text(json.dumps({"genes": genes}))
    for i, test in enumerate((["FIX3"], ["FIX2", "FIX1"])):  # FIX1 and FIX2 are of one patient
        train = [s for s in ("FIX3", "FIX2", "FIX1") if s not in test]
        for side, ids in (("test", test), ("train", train)):
            lines = [f"{s},patches/{s}.h5,adata/{s}.h5ad\n" for s in ids]
            text = "".join(["sample_id,patches_path,expr_path\n", *lines])
            (folder / f"bench/FIXTASK/splits/{side}_{i}.csv").write_text(text)
    write_vocabulary(folder / "vocabulary.tsv", POOL)
    return folder


def write_vocabulary(path: Path, genes: list[str]) -> Path:
    """A vocabulary in scFoundation's form that begins with these genes."""
    names = [*genes, *(f"unnamed_{i}" for i in range(N_VOCABULARY - len(genes)))]
    table = pd.DataFrame({"gene_name": names, "index": range(N_VOCABULARY)})
    table.to_csv(path, sep="\t", index=False)
    return path


def _slide(name, seed, um_per_px, size, grid, pitch, today, older) -> dict:
    """Image, counts and tiles of one slide, in memory."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), dtype=np.uint8)
    image = cv2.blur(image, (3, 3)).repeat(4, 0).repeat(4, 1)
    image = np.ascontiguousarray(image[: size[1], : size[0]])
    place = np.array([(x, y) for x in range(grid[0]) for y in range(grid[1])])  # (n, 2)
    centres = 100.0 + place * pitch + rng.uniform(-9, 9, place.shape).round(2)
    if name == VISIUM:
        centres -= (75, 40)  # tiles of the first column leave the image
        place, centres = np.vstack([[30, 30], place]), np.vstack([[1969.3, 77.3], centres])
    n, genes = len(centres), rng.permutation(POOL)[: 505 + 15 * seed]
    counts = rng.poisson(rng.gamma(1.0, 3.0, len(genes)), (n, len(genes)))  # (n, G)
    counts[0 if name == "FIX1" else 3] = 0  # a spot without counts; in FIX1 one that has a tile
    if name == VISIUM:
        barcodes = ["".join(rng.choice(list("ACGT"), 16)) + "-1" for _ in range(n)]
    else:
        barcodes = [f"{18 + x:03d}x{20 + y:03d}" for x, y in place]
    adata = _adata(name, counts, genes, barcodes, place, centres, image)
    now, then = (_tiles(image, centres[list(r)], um_per_px, r is older) for r in (today, older))
    return {"image": image, "counts": counts, "barcodes": barcodes, "adata": adata,
            "um": um_per_px, "today": (today, *now), "older": (older, *then)}  # fmt: skip


def _tiles(image, centres, um_per_px, older) -> tuple[np.ndarray, np.ndarray]:
    """Tiles (n, 224, 224, 3) and coords (n, 2) by a generation's rule: top-left (x, y), or centre
    (Y, X)."""
    wide, side, tiles, coords = (
        np.pad(image, ((400, 400), (400, 400), (0, 0))), int(112 / um_per_px + 0.5), [], [],
    )  # fmt: skip
    how = cv2.INTER_CUBIC if older else cv2.INTER_LINEAR
    for x, y in centres:
        half = side // 2 if older else int(112 / um_per_px / 2)
        left, top = (int(x) - half, int(y) - half) if older else (int(x - half), int(y - half))
        crop = wide[top + 400 : top + 400 + side, left + 400 : left + 400 + side]
        tiles.append(cv2.resize(crop, (224, 224), interpolation=how))
        coords.append((int(y), int(x)) if older else (left, top))
    return np.stack(tiles), np.array(coords, dtype=np.int64)


def _adata(name, counts, genes, barcodes, place, centres, image) -> ad.AnnData:
    """What HEST keeps of a slide: counts, positions, scanpy's quality control, a small image."""
    from scanpy.preprocessing import calculate_qc_metrics  # slow to import

    visium = name == VISIUM
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
    calculate_qc_metrics(adata, percent_top=None, inplace=True)
    share = np.sort(counts)[:, -50:].sum(1) / np.where(counts.sum(1), counts.sum(1), np.nan)
    adata.obs["pct_counts_in_top_50_genes"] = 100 * share  # NaN of a spot without counts
    scale = 300 / max(image.shape)
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    factors = {"spot_diameter_fullres": 60.0, "tissue_downscaled_fullres_scalef": scale}
    adata.uns["spatial"] = {
        "ST": {"images": {"downscaled_fullres": small}, "scalefactors": factors}
    }
    return adata


def _write_slide(folder: Path, name: str, slide: dict) -> None:
    """The files of one slide in both generations, its metadata, and what a reader must find."""
    um, side, barcodes, counts = slide["um"], int(112 / slide["um"] + 0.5), *(
        slide[key] for key in ("barcodes", "counts")
    )  # fmt: skip
    sha256 = lambda content: hashlib.sha256(content).hexdigest()
    golden = {
        "pixel_size_um": um, "n_spots_h5ad": len(counts), "barcodes_h5ad": barcodes,
        "no_patch": [{"barcode": b} for i, b in enumerate(barcodes) if i not in slide["today"][0]],
        "obsm_spatial": slide["adata"].obsm["spatial"].tolist(),
        "h5ad": {
            "X_int64_C_order_sha256": sha256(counts.astype("<i8").tobytes()),
            "var_names_sha256_newline_joined": sha256("\n".join(slide["adata"].var_names).encode()),
            "counts_per_spot": counts.sum(1).tolist(),
        },
    }  # fmt: skip
    now = {"patch_size_src": side, "patch_size_target": 224, "pixel_size": um}
    for part, key, place, attrs in (
        ("hest1k", "today", "st", now | {"downsample": 0.5 / um}),
        ("bench/FIXTASK", "older", "adata", {"factor": 0.5 / um, "patch_size": side}),
    ):
        slide["adata"].copy().write_h5ad(folder / part / place / f"{name}.h5ad")
        rows, tiles, coords = slide[key]
        names = [barcodes[i] for i in rows]
        with h5py.File(folder / part / f"patches/{name}.h5", "w") as file:
            for data_set, data, kind in (
                ("img", tiles, None), ("coords", coords, None),
                ("barcode", np.array(names, object)[:, None], h5py.string_dtype()),
            ):  # fmt: skip
                shape = data.shape[1:]
                form = {"chunks": (1, *shape), "maxshape": (None, *shape)}
                file.create_dataset(data_set, data=data, dtype=kind, **form)
            file["img"].attrs.update(attrs)
        golden["patches_h5" if key == "today" else "legacy_patches_h5"] = {"rows": [
            {"barcode": b, "coords": c.tolist(), "sha256": sha256(tile.tobytes())}
            for b, c, tile in zip(names, coords, tiles)
        ]}  # fmt: skip
    (folder / f"golden/{name}.json").write_text(json.dumps(golden))
    assert cv2.imwrite(str(folder / f"hest1k/wsis/{name}.tif"), slide["image"][..., ::-1])
    metadata = {
        "pixel_size_um_embedded": None, "pixel_size_um_estimated": um, "id": name,
        "spots_under_tissue": len(counts), "patient": float("nan"),
    }  # fmt: skip
    text = json.dumps(metadata, indent=3)  # with a bare NaN, as HEST's
    (folder / f"hest1k/metadata/{name}.json").write_text(text)


# ---- the index

WORDS = (
    "dataset_title id image_filename organ disease_state oncotree_code species patient "
    "st_technology data_publication_date license study_link download_page_link1 inter_spot_dist "
    "spot_diameter spots_under_tissue preservation_method nb_genes treatment_comment "
    "pixel_size_um_embedded pixel_size_um_estimated magnification fullres_px_width "
    "fullres_px_height tissue disease_comment subseries hest_version_added"
)
COLUMNS = WORDS.split()


def write_index(path: Path, rows: list[dict]) -> Path:
    """An index as HEST's: 28 columns, byte order mark, LF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, lineterminator="\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    return path


def row(sample: str, spots: int = 14, um_per_px: float = 0.5, **other) -> dict:
    """A line of an index: a Visium slide of human breast without a patient (three spaces), and with
    a nonsensical embedded pixel size."""
    return dict.fromkeys(COLUMNS, "") | {
        "dataset_title": f"study of {sample}", "id": sample, "organ": "Breast",
        "species": "Homo sapiens", "patient": "   ", "st_technology": "Visium",
        "spots_under_tissue": str(spots), "pixel_size_um_estimated": str(um_per_px),
        "pixel_size_um_embedded": "31.75", "fullres_px_width": "4000", "fullres_px_height": "100",
    } | other  # fmt: skip


def draw_papers_index(path: Path, cohorts: dict, groups: pd.DataFrame) -> Path:
    """An index with as many slides and spots of each cohort as the paper's, under the ids of our
    own table of groups in its order.

    Copies have as many spots as their originals; 13 slides list a whole array of 4,992 spots, one
    of breast and 12 of liver.
    """
    rows, start = [row("NOT1", organ="Lung", species="Mus musculus")], 0
    copies = {*groups.sample_id[groups.duplicate_of != ""], *groups.duplicate_of}
    for name, rules in cohorts.items():
        own = groups.iloc[start : start + rules.slides]
        start += rules.slides
        spots = {"TENX23": 4325, "TENX24": 4325, "TENX39": 4992} if name == "breast" else {}
        spots |= dict.fromkeys(own.sample_id[:12], 4992) if name == "liver" else {}
        rest, left = [s for s in own.sample_id if s not in spots], rules.spots - sum(spots.values())
        spots |= {s: left // len(rest) for s in rest}
        spots[next(s for s in reversed(rest) if s not in copies)] += left % len(rest)
        for line in own.itertuples():
            patient = line.patient if line.basis == "index" else "   "
            facts = {"patient": patient, "dataset_title": f"study of {name}"}
            facts |= {"organ": rules.organ, "oncotree_code": rules.oncotree}
            rows.append(row(line.sample_id, spots[line.sample_id], **facts))
    return write_index(path, rows)
