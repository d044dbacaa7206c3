"""HEST-1k: index, groups, files and conversion, on drawn slides and on HEST's own files."""

import hashlib
import json
import shutil

import anndata as ad
import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from damage import edit_h5, edit_h5ad, refused
from draw_hest import row, write_index
from fake_hest import GENES, IDS, PANEL, build, state
from fake_hub import hub, kept  # noqa: F401

from peka_core.cohort import open_cohort
from peka_core.downloads.record import Record
from peka_core.genes import log_cp10k
from peka_core.layout.sections import open_section, read_counts
from peka_core.protocols import PROTOCOLS
from peka_core.sources import hest, hest_slide

SUFFIXES = {"st": "h5ad", "patches": "h5", "metadata": "json"}
NAMES = {f"hest/{folder}/{s}.{suffix}" for s in IDS for folder, suffix in SUFFIXES.items()}


def opened(path, options, **other):
    """The cohort that is built, its source.json, and one text of the warnings."""
    text = "\n".join(build(path, options, **other))
    return open_cohort(path), json.loads((path / "source.json").read_text()), text


# ---- the index


def test_the_papers_cohorts_and_the_curated_patients_agree_with_the_index(papers_index):
    counted = hest.counts_table()  # slides and spots that are not the expected ones are refused
    assert list(counted.difference) == [129, 407, 26984, 4915]
    assert list(counted["whole arrays"]) == [1, 0, 12, 0]
    tables = {cohort: hest.slides(cohort) for cohort in hest.COHORTS}
    every, groups = pd.concat(tables.values()), map(hest.groups, tables.values())
    curated = pd.concat(groups)
    assert curated.basis.ne("").all() and (curated.evidence.str.len() > 20).all()
    copies = dict(curated.duplicate_of[curated.duplicate_of != ""])
    assert copies == {"TENX23": "TENX24", "NCBI537": "MEND51", "NCBI536": "MEND45",
                      "NCBI535": "MEND41", "NCBI534": "MEND47"}  # fmt: skip
    sides = [every.loc[list(ids)].reset_index() for ids in (copies, copies.values())]
    for column in ("fullres_px_width", "fullres_px_height", "spots"):
        assert sides[0][column].equals(sides[1][column])
    assert np.allclose(sides[0].um_per_px, sides[1].um_per_px, rtol=1e-6)
    assert all(curated.patient[sample] == curated.patient[copies[sample]] for sample in copies)
    named = every.index[(every.patient != "") & (curated.basis == "index")]
    assert curated.patient[named].is_unique, "patients of the index are not merged"
    found = [hest.groups(table).patient.nunique() for table in tables.values()]
    assert found == [6, 23, 10, 18]
    assert hest.groups(tables["lung"], "study").patient.nunique() == 6


@pytest.mark.parametrize("changes", [{"counts": None}, {"index_sha256": "0000"}])
def test_another_index_is_refused_before_a_run(mirror, changes):
    refused(mirror[1] | changes, "index.csv", call=lambda options: hest.preflight(**options))


def test_patients_of_slides_that_nobody_curated(mirror):
    table = hest.slides("breast", **mirror[1])
    found = hest.groups(table).patient
    assert list(found.index) == list(IDS) and found["TENX13"] == found["TENX14"]
    assert list(found[-2:]) == ["Patient 1 of study of D1", "D2"]
    alone = hest.groups(table.drop(index="TENX24"))
    assert alone.duplicate_of["TENX23"] == "", "its original is not here"


def test_splits_leave_patients_out_in_even_folds():
    samples = pd.DataFrame({"patient": ["a", "a", "b", "c", "d"]}, index=list("12345"))
    spots = dict(zip("12345", (30, 30, 50, 40, 20)))
    assert hest.make_splits(samples, spots, 3) == [
        (["3", "4", "5"], ["1", "2"]), (["1", "2", "4", "5"], ["3"]), (["1", "2", "3"], ["4", "5"]),
    ]  # fmt: skip
    tested = lambda table: [test for _, test in hest.make_splits(table, spots, 9)]
    assert tested(samples) == [["1", "2"], ["3"], ["4"], ["5"]]
    assert tested(samples.assign(patient="a")) == [["3"], ["4"], ["1"], ["2"], ["5"]]


# ---- conversion


def test_a_mirror_becomes_a_cohort_by_links_and_stays_as_it_is(mirror, tmp_path):
    home, options = mirror
    before = state(home)
    cohort, made, text = opened(tmp_path / "cohort", options)
    for sample in IDS:
        assert (cohort.path / f"adata/{sample}.h5ad").samefile(home / f"st/{sample}.h5ad")
        assert (cohort.path / f"patches/{sample}.h5").samefile(home / f"patches/{sample}.h5")
    assert list(cohort.samples.index) == list(IDS) and len(cohort) == 72
    assert cohort.samples.group.nunique() == 4 and cohort.samples.evidence.ne("").all()
    assert [s.scheme for s in cohort.splits] == ["patients"] * 4
    assert made["genes_in_common"] == 55 and made["kept_of_each"]["D1"] == "55 of 120"
    found = {"of": "TENX24", "shared_barcodes": 12, "tiles_compared": 12, "identical": 12}
    assert made["copies"] == {"TENX23": found | {"mean_difference": 0.0}}
    assert made["sections"]["D2"]["spots"] == 12 and made["sections"]["D2"]["without_counts"] == 1
    assert text == "\n".join(made["notes"]) and len(made["notes"]) == 2
    assert "D2" in made["notes"][0] and "TENX23" in made["notes"][1]
    tiles = cohort.tiles()
    for spot in (0, 30, 71):
        with h5py.File(home / "patches" / f"{cohort.obs['sample'].iloc[spot]}.h5") as file:
            place = [b.decode() for b in file["barcode"][:, 0]].index(cohort.obs.barcode.iloc[spot])
            assert np.array_equal(tiles[spot][0], file["img"][place])
    assert state(home) == before
    for split in PROTOCOLS["strict"].splits(cohort):  # it drops copies
        assert not (split.train | split.test)[cohort.obs["sample"] == "TENX23"].any()


@pytest.mark.parametrize("leave_out, genes", [([], 55), (["TENX23"], 120)])
def test_the_genes_are_those_of_the_joined_cohort(mirror, tmp_path, leave_out, genes):
    """Chosen slide by slide, and equal to what all spots in memory give; the authors' beside."""
    authors = mirror[0] / hest.COHORTS["breast"].authors_genes
    authors.write_text(json.dumps({"genes": [*PANEL[:10], "NOSUCH"]}))
    cohort, made, _ = opened(tmp_path / "cohort", mirror[1], leave_out=leave_out)
    adata = cohort.adata()
    assert adata.n_vars == genes and not set(leave_out) & set(cohort.samples.index)
    adata.X = log_cp10k(adata, dense=False)
    sc.pp.highly_variable_genes(adata, n_top_genes=50, flavor="seurat", batch_key="sample")
    assert cohort.genes == list(adata.var_names[adata.var["highly_variable"]])
    found = [made["authors_genes"][k] for k in ("genes", "in_every_slide", "shared_with_ours")]
    assert found == [11, 10, len(set(cohort.genes) & set(PANEL[:10]))]


def test_a_finished_cohort_is_left_alone_and_a_lost_link_mended(mirror, tmp_path):
    (home, options), path = mirror, tmp_path / "cohort"
    options |= {"leave_out": ["TENX23", "TENX24"]}
    build(path, options)
    digest, written, before = open_cohort(path).digest, state(path), state(home)
    assert build(path, options) == [] and state(path) == written
    others = {"leave_out": ["TENX23", "TENX24", "D1", "D2"]}  # anew, and through no link
    cohort, _, text = opened(path, options | others)
    assert "one patient" in text and state(home) == before and not list(path.rglob("D2.*"))
    assert [s.name for s in cohort.splits] == ["sections/0", "sections/1"]
    build(path, options)
    (path / "patches/D1.h5").unlink()
    (path / "patches/D1.h5").symlink_to(tmp_path / "gone.h5")
    build(path, options)
    assert open_cohort(path).digest == digest
    (path / "source.json").unlink()  # whose files are these?
    refused(path, path, call=lambda path: build(path, options))


@pytest.mark.filterwarnings("ignore:Variable names")
def test_ensembl_ids_and_repeated_names_are_mended_in_a_copy(mirror, tmp_path):
    home, options = mirror
    ids = [f"ENSG{i:011d}" for i in range(120)]
    edit_h5ad(home / "st/D1.h5ad", lambda a: setattr(a, "var_names", [f"{id}.7" for id in ids]))
    edit_h5ad(home / "st/D2.h5ad", lambda a: a.var.insert(0, "gene_ids", ids))
    twice = [*GENES[:119], GENES[0]]
    edit_h5ad(home / "st/TENX14.h5ad", lambda a: setattr(a, "var_names", twice))
    before = state(home)
    cohort, made, _ = opened(tmp_path / "cohort", options, leave_out="TENX23")
    genes = {section.sample: list(section.genes) for section in cohort.sections}
    assert genes["D1"] == genes["D2"] == GENES and genes["TENX14"][119] == "G000-1"
    raw = ad.read_h5ad(home / "st/D1.h5ad")
    assert np.array_equal(cohort.adata(["D1"]).X.toarray(), raw.X.toarray()[:12])
    assert state(home) == before
    notes = [note.split(" ")[:2] for note in made["notes"] if "gene names" in note]
    assert notes == [["TENX14:", "1"], ["D1:", "120"]]


def test_what_does_not_fit_the_index_is_said(mirror, tmp_path):
    """Numbers of spots, pixel sizes, and a copy that is none."""
    home, _ = mirror
    (home / "metadata/D2.json").write_text('{"pixel_size_um_estimated": 0.55}')
    with h5py.File(home / "patches/D1.h5", "a") as file:
        file["img"].attrs["pixel_size"] = 0.6
        file.move("barcode", "barcodes")  # as in August 2024
    with h5py.File(home / "patches/TENX23.h5", "a") as file:
        file["img"][:] = 255 - file["img"][:]
    options = write_index(home, [row(s, 13 if s == "TENX13" else 14) for s in IDS])
    _, _, text = opened(tmp_path / "cohort", options)
    for part in ("TENX13: its h5ad has 14 spots", "D2: D2.json: 0.5500", "D1: tiles: 0.6000",
                 "TENX23: listed as a copy of TENX24"):  # fmt: skip
        assert part in text
    assert "TENX24:" not in text


# ---- HEST's own files (and drawn ones)


def digest(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def test_tiles_of_256_px_are_cut_again_as_hests_own_byte_for_byte(
    hest_files, fixture_mirror, tmp_path, monkeypatch
):
    home, options = fixture_mirror
    options |= {"leave_out": IDS[1:5]}
    golden = json.loads((hest_files / "golden/FIX1.json").read_text())["patches_h5"]["rows"]
    with h5py.File(home / "patches/FIX1.h5") as file:
        large = np.stack([cv2.resize(tile, (256, 256)) for tile in file["img"][:]])
    edit_h5(home / "patches/FIX1.h5", img=large)
    cohort, _, text = opened(tmp_path / "cohort", options)
    assert "FIX1: tiles of 256 px" in text
    tiles, here = cohort.tiles(), np.flatnonzero(cohort.obs["sample"] == "FIX1")
    digests = {cohort.obs.barcode.iloc[i]: digest(tiles[i]) for i in here}
    assert digests == {r["barcode"]: r["sha256"] for r in golden}
    with h5py.File(cohort.path / "patches/FIX1.h5") as file:
        assert file["coords"][:].tolist() == [r["coords"] for r in golden]
    monkeypatch.setattr(hest_slide, "LEVEL_1", 2.0)
    refused(tmp_path / "fine", "FIX1.h5", "256", "FIX1.tif", call=lambda p: build(p, options))


def test_hests_own_files_are_read_spot_by_spot(hest_files, fixture_mirror, tmp_path):
    cohort, _, _ = opened(tmp_path / "cohort", fixture_mirror[1], leave_out=IDS[1:5])
    tiles, adata, compared = cohort.tiles(), cohort.adata(), 0
    for section in cohort.sections:
        golden = json.loads((hest_files / f"golden/{section.sample}.json").read_text())
        whole = read_counts(open_section(section.sample, section.h5ad, None))  # every spot
        assert digest(whole.toarray().astype("<i8")) == golden["h5ad"]["X_int64_C_order_sha256"]
        genes = hashlib.sha256("\n".join(section.genes).encode()).hexdigest()
        assert genes == golden["h5ad"]["var_names_sha256_newline_joined"]
        assert section.without_tile == len(golden["no_patch"])
        assert cohort.samples.um_per_px[section.sample] == golden["pixel_size_um"]
        for expected in golden["patches_h5"]["rows"]:
            spot = cohort.obs.index.get_loc(f"{section.sample}:{expected['barcode']}")
            i = golden["barcodes_h5ad"].index(expected["barcode"])
            assert digest(tiles[spot]) == expected["sha256"]
            assert cohort.obs.total_counts.iloc[spot] == golden["h5ad"]["counts_per_spot"][i]
            assert np.abs(adata.obsm["spatial"][spot] - golden["obsm_spatial"][i]).max() < 1e-6
            compared += 1
    assert compared == len(cohort) == 19
    assert list(cohort.samples.patient) == ["FIX3", "Patient C of FIX", "Patient C of FIX"]


# ---- files from a mirror or a hub


def test_a_mirror_lacks_files_or_changes_them(mirror):
    home, options = mirror
    hest.fetch(**options)
    assert Record().entries.keys() == NAMES
    (home / "patches/D1.h5").write_bytes((home / "patches/D1.h5").read_bytes() + b"\0")
    refused(options, "patches/D1.h5", call=lambda options: hest.fetch(**options))
    (home / "patches/D1.h5").unlink()
    (home / "st/D2.h5ad").unlink()
    ask = lambda options: hest.preflight(**options)
    refused(options, "patches/D1.h5", "st/D2.h5ad", call=ask)


def test_the_hub_gives_just_those_slides_and_later_ones_of_the_same_commit(
    drawn_mirror, hub, tmp_path
):
    """It has two more, whose names are the beginning of a slide's or go on."""
    shutil.copytree(drawn_mirror[0], hub.folder, dirs_exist_ok=True)
    for sample in ("TENX1", "TENX131"):
        shutil.copy(hub.folder / "patches/D1.h5", hub.folder / f"patches/{sample}.h5")
    options = drawn_mirror[1] | {"index": str(hub.folder / "index.csv")}
    place = tmp_path / "cache/hest/st/TENX13.h5ad"  # put there by hand, it must be the hub's
    place.parent.mkdir(parents=True)
    place.write_bytes((hub.folder / "st/TENX13.h5ad").read_bytes() + b"\0")
    refused(options, "st/TENX13.h5ad", call=lambda options: hest.fetch(**options))
    shutil.copyfile(hub.folder / "st/TENX13.h5ad", place)
    paths = hest.fetch(**options)
    assert set(kept(tmp_path / "cache")) == NAMES
    assert Record().entries["hest/st/TENX13.h5ad"]["revision"] == hub.newest
    hub.newest, hub.asked = "b" * 40, []
    assert hest.fetch(**options) == paths and hub.asked == []
    paths["D1"]["st"].unlink()
    hest.fetch(**options)
    assert len(hub.got()) == 1 and "b" * 40 not in str(hub.asked)
