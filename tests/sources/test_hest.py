"""HEST-1k: index, groups and conversion, on drawn slides and on HEST's own files."""

import hashlib
import json
import shutil
import warnings

import anndata as ad
import cv2
import h5py
import numpy as np
import pandas as pd
import pytest
from conftest import SHARED
from fake_hest import (  # noqa: F401
    GENES,
    IDS,
    PANEL,
    build,
    draw_slide,
    drawn_mirror,
    mirror,
    row,
    state,
    write_index,
)

from peka_core.cohort import open_cohort
from peka_core.common.errors import PekaError
from peka_core.common.files import link_whole, sha256
from peka_core.encoders import load_encoder
from peka_core.evaluation import evaluate
from peka_core.genes import log_cp10k, variable_genes
from peka_core.layout.sections import open_section, read_counts
from peka_core.protocols import PROTOCOLS
from peka_core.sources import hest, hest_index, hest_slide

# ---- the index ---------------------------------------------------------------------------------


def test_the_four_cohorts_of_the_papers_index(papers_index):
    table = hest.counts_table()
    assert table.slides.to_dict() == {"breast": 8, "kidney": 24, "liver": 14, "lung": 37}
    assert (
        list(table["spots in index"]) == [30543, 74220, 64152, 69643]
        and table["n in paper"].sum() == 206123
    )
    assert list(table.difference) == [129, 407, 26984, 4915] and list(table["whole arrays"]) == [
        1,
        0,
        12,
        0,
    ]
    assert sorted(hest.slides("breast").index) == sorted(
        ["TENX13", "TENX14", "TENX23", "TENX24", "TENX39", "TENX53", "TENX68", "NCBI776"]
    )


def test_every_slide_is_curated_and_the_index_bears_the_evidence_out(papers_index):
    tables = {cohort: hest.slides(cohort) for cohort in hest.COHORTS}
    curated = pd.read_csv(hest_index.GROUPS, dtype=str, keep_default_na=False).set_index(
        "sample_id"
    )
    assert sorted(curated.index) == sorted(
        sample for table in tables.values() for sample in table.index
    )
    assert (curated.evidence.str.len() > 20).all()
    assert set(curated.basis) == {"index", "derived", "reported", "precaution", "unknown"}
    assert (
        curated.patient[curated.basis == "unknown"]
        .eq(curated.index[curated.basis == "unknown"])
        .all()
    )
    copies = curated[curated.duplicate_of != ""]
    assert dict(copies.duplicate_of) == {
        "TENX23": "TENX24",
        "NCBI537": "MEND51",
        "NCBI536": "MEND45",
        "NCBI535": "MEND41",
        "NCBI534": "MEND47",
    }
    every = pd.concat(tables.values())
    same = ["fullres_px_width", "fullres_px_height", "spots"]
    for sample, original in copies.duplicate_of.items():
        assert (
            every.loc[sample, same].equals(every.loc[original, same])
            and curated.patient[sample] == curated.patient[original]
        )
        assert every.um_per_px[sample] == pytest.approx(every.um_per_px[original], rel=1e-6)
    named = every[(every.patient != "") & (curated.basis.loc[every.index] == "index")]
    assert curated.patient[
        named.index
    ].is_unique  # the index's patients of kidney and liver, none merged unsaid
    found = {cohort: hest.groups(table).patient.nunique() for cohort, table in tables.items()}
    assert found == {"breast": 6, "kidney": 23, "liver": 10, "lung": 18}
    studies = 6 if papers_index == SHARED / "data" else 1  # the drawn index has one study a cohort
    assert hest.groups(tables["lung"], "study").patient.nunique() == studies


def test_a_wrong_index_is_refused(mirror):
    home, options = mirror
    shutil.copy(home / "index.csv", home / "HEST_v1_1_0.csv")
    for changes, named in (
        ({"counts": None}, "index.csv.* 6 .* 84 "),
        ({"index_sha256": "0000"}, "index.csv"),
        ({"cohort": "brest"}, "brest"),
        ({"index": "nowhere.csv"}, "nowhere.csv"),
        ({"index": "", "index_sha256": ""}, "HEST_v1_1_0.csv"),
    ):
        with pytest.raises(PekaError, match=named):
            hest.slides(**{"cohort": "breast"} | options | changes)


def test_patients_of_slides_that_nobody_curated(mirror):
    found = hest.groups(hest.slides("breast", **mirror[1]))
    assert found.patient["D1"] == "Patient 1 of study of D1" and found.basis["D1"] == "index"
    assert (
        found.patient["D2"] == "D2"
        and found.basis["D2"] == "unknown"
        and "each slide its own group" in found.evidence["D2"]
    )
    assert found.patient["TENX13"] == found.patient["TENX14"] and list(found.index) == list(IDS)
    alone = hest.groups(hest.slides("breast", **mirror[1]).drop(index="TENX24"))
    assert alone.duplicate_of["TENX23"] == ""  # its original is not here
    with pytest.raises(PekaError, match="unknown"):
        hest.groups(hest.slides("breast", **mirror[1]), "patient")


def test_splits_leave_patients_out_in_even_folds():
    samples = pd.DataFrame({"patient": ["a", "a", "b", "c", "d"]}, index=list("12345"))
    spots = dict(zip("12345", (30, 30, 50, 40, 20)))
    assert hest.make_splits(samples, spots, 3) == [
        (["3", "4", "5"], ["1", "2"]), (["1", "2", "4", "5"], ["3"]), (["1", "2", "3"], ["4", "5"]),
    ]  # fmt: skip
    tested = lambda table: [test for _, test in hest.make_splits(table, spots, 9)]
    assert tested(samples) == [["1", "2"], ["3"], ["4"], ["5"]]
    assert tested(samples.assign(patient="a")) == [["3"], ["4"], ["1"], ["2"], ["5"]]
    assert hest.make_splits(samples, spots, 1) == []


# ---- conversion --------------------------------------------------------------------------------


def test_a_mirror_becomes_a_cohort_by_links_and_stays_as_it_is(mirror, tmp_path):
    home, options = mirror
    before = state(home)
    said = build(tmp_path / "cohort", options)
    cohort = open_cohort(tmp_path / "cohort")
    for sample in IDS:
        for ours, theirs in (("adata/{}.h5ad", "st/{}.h5ad"), ("patches/{}.h5", "patches/{}.h5")):
            original = (home / theirs.format(sample)).resolve()
            assert (cohort.path / ours.format(sample)).resolve() == original
    with pytest.warns(UserWarning):
        notes = cohort.validate()
    parts = ("2 spots of", "1 of 12 spots", "TENX23 (12 spots) is a copy of TENX24")
    assert len(notes) == 13 and all(any(part in note for part in parts) for note in notes)
    assert list(cohort.samples.index) == list(IDS) and len(cohort) == 72
    assert (
        cohort.samples.group.nunique() == 4
        and [s.scheme for s in cohort.splits] == ["patients"] * 4
    )
    assert (
        cohort.samples.duplicate_of["TENX23"] == "TENX24" and cohort.samples.evidence.ne("").all()
    )
    assert len(cohort.genes) == 50 and set(cohort.genes) <= set(PANEL)
    made = json.loads((cohort.path / "source.json").read_text())
    assert made["genes_in_common"] == 55 and made["kept_of_each"]["D1"] == "55 of 120"
    assert made["copies"] == {"TENX23": {
        "of": "TENX24", "shared_barcodes": 12, "tiles_compared": 12, "identical": 12,
        "mean_difference": 0.0,
    }}  # fmt: skip
    assert made["sections"]["D2"]["spots"] == 12 and made["sections"]["D2"]["without_counts"] == 1
    assert made["authors_genes"] == {"file": hest.COHORTS["breast"].authors_genes, "found": False}
    assert said == made["notes"] and len(said) == 2
    assert (
        "TENX23: without it 120 genes" in said[1]
        and "1 slides of unknown patients" in said[0]
        and "D2" in said[0]
    )
    tiles = cohort.tiles()
    for spot in (0, 30, 71):
        with h5py.File(home / "patches" / f"{cohort.obs['sample'].iloc[spot]}.h5") as file:
            place = [b.decode() for b in file["barcode"][:, 0]].index(cohort.obs.barcode.iloc[spot])
            assert np.array_equal(tiles[spot][0], file["img"][place])
    assert state(home) == before


@pytest.mark.parametrize("leave_out, genes", [([], 55), (["TENX23"], 120)])
def test_the_genes_are_those_of_the_joined_cohort(mirror, tmp_path, leave_out, genes):
    """Chosen slide by slide, and equal to what all spots in memory give."""
    build(tmp_path / "cohort", mirror[1], leave_out=leave_out)
    cohort = open_cohort(tmp_path / "cohort")
    adata = cohort.adata()
    assert adata.n_vars == genes and not set(leave_out) & set(cohort.samples.index)
    assert cohort.genes == variable_genes(log_cp10k(adata), adata, np.ones(adata.n_obs, bool), 50)


def test_slides_to_leave_out_are_known_and_too_few_genes_named(mirror, tmp_path):
    with pytest.raises(PekaError, match="TENX9"):
        build(tmp_path / "other", mirror[1], leave_out="TENX9")
    draw_slide(mirror[0], "TENX23", PANEL[:20], seed=2)
    with pytest.raises(PekaError, match="20 genes.*TENX23.*120"):
        build(tmp_path / "cohort", mirror[1])


def test_a_finished_cohort_is_left_alone_and_a_lost_link_mended(mirror, tmp_path):
    home, options = mirror
    build(tmp_path / "cohort", options)
    digest, written = open_cohort(tmp_path / "cohort").digest, state(tmp_path / "cohort")
    assert build(tmp_path / "cohort", options) == [] and state(tmp_path / "cohort") == written
    before = state(home)
    build(
        tmp_path / "cohort", options, folds=2, leave_out="D2"
    )  # other options build anew, through no link
    assert len(open_cohort(tmp_path / "cohort").splits) == 2 and state(home) == before
    assert not list((tmp_path / "cohort").rglob("D2.*"))
    build(tmp_path / "cohort", options)
    (tmp_path / "cohort/patches/D1.h5").unlink()
    (tmp_path / "cohort/patches/D1.h5").symlink_to(tmp_path / "gone.h5")
    build(tmp_path / "cohort", options)
    assert open_cohort(tmp_path / "cohort").digest == digest
    (tmp_path / "mine/adata").mkdir(parents=True)
    with pytest.raises(PekaError, match="mine"):
        build(tmp_path / "mine", options)


def test_links_fall_back_to_hard_links_and_copies(mirror, tmp_path, monkeypatch):
    original = mirror[0] / "st/D1.h5ad"

    def refuse(*words, **named):
        raise OSError("no links here")

    assert link_whole(original, tmp_path / "a", symbolic=True).is_symlink()
    monkeypatch.setattr("os.symlink", refuse)
    assert (
        link_whole(original, tmp_path / "b", symbolic=True).samefile(original)
        and not (tmp_path / "b").is_symlink()
    )
    monkeypatch.setattr("os.link", refuse)
    assert sha256(link_whole(original, tmp_path / "c", symbolic=True)) == sha256(original)
    assert not (tmp_path / "c").samefile(original) and len(list(tmp_path.glob(".*"))) == 0


def test_ensembl_ids_and_repeated_names_are_mended_in_a_copy(mirror, tmp_path):
    home, options = mirror
    ids = [f"ENSG{i:011d}" for i in range(120)]
    for sample, change in (("D1", "ids"), ("D2", "both"), ("TENX14", "twice")):
        adata = ad.read_h5ad(home / "st" / f"{sample}.h5ad")
        if change == "ids":
            adata.var_names = [f"{id}.7" for id in ids]
        elif change == "both":
            adata.var["gene_ids"] = ids
        else:
            adata.var_names = [*GENES[:119], GENES[0]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata.write_h5ad(home / "st" / f"{sample}.h5ad")
    before = state(home)
    build(tmp_path / "cohort", options, leave_out="TENX23")
    cohort = open_cohort(tmp_path / "cohort")
    genes = {section.sample: section.genes for section in cohort.sections}
    assert (
        list(genes["D1"]) == GENES
        and genes["TENX14"][119] == "G000-1"
        and not genes["D2"].str.startswith("ENSG").any()
    )
    raw = ad.read_h5ad(home / "st/D1.h5ad")
    assert np.array_equal(cohort.adata(["D1"]).X.toarray(), raw.X.toarray()[:12])
    assert (
        not (cohort.path / "adata/D1.h5ad").is_symlink()
        and (cohort.path / "adata/D2.h5ad").is_symlink()
    )
    notes = json.loads((cohort.path / "source.json").read_text())["notes"]
    assert [note.split(" ")[:2] for note in notes if "gene names" in note] == [
        ["TENX14:", "1"],
        ["D1:", "120"],
    ]
    assert state(home) == before


def test_what_does_not_fit_the_index_is_said(mirror, tmp_path):
    home, options = mirror
    (home / "metadata/D2.json").write_text('{"pixel_size_um_estimated": 0.55}')
    with h5py.File(home / "patches/D1.h5", "a") as file:
        file["img"].attrs["pixel_size"] = 0.6
        file.move("barcode", "barcodes")  # as in August 2024
    rows = [row(s, spots=13 if s == "TENX13" else 14) for s in IDS]
    with h5py.File(home / "patches/TENX23.h5", "a") as file:
        file["img"][:] = 255 - file["img"][:]
    text = "\n".join(build(tmp_path / "cohort", write_index(home, rows)))
    assert "TENX13: its h5ad has 14 spots" in text and "TENX24:" not in text
    assert "D2: D2.json: 0.5500 um/px" in text and "D1: tiles: 0.6000 um/px" in text
    assert "TENX23: listed as a copy of TENX24" in text


def test_one_patient_is_split_by_slide_with_a_warning(mirror, tmp_path):
    text = "\n".join(
        build(tmp_path / "cohort", mirror[1], leave_out=["D1", "D2", "TENX23", "TENX24"])
    )
    assert "one patient" in text
    assert [s.name for s in open_cohort(tmp_path / "cohort").splits] == ["sections/0", "sections/1"]


def test_coarse_slides_are_named(mirror, tmp_path):
    draw_slide(mirror[0], "D1", seed=4, um_per_px=0.9)
    options = write_index(mirror[0], [row(s, um_per_px=0.9 if s == "D1" else 0.5) for s in IDS])
    text = "\n".join(build(tmp_path / "cohort", options))
    assert "0.90 um/px" in text and "(D1)" in text


def test_tiles_of_256_px_are_refused_or_cut_again(hest_files, tmp_path, monkeypatch):
    """Byte for byte HEST's own tiles, from HEST's own image (and so with drawn ones)."""
    home, options = fixture_mirror(hest_files, tmp_path, monkeypatch)
    shutil.rmtree(home / "wsis")
    golden = json.loads((hest_files / "golden/FIX1.json").read_text())["patches_h5"]["rows"]
    with h5py.File(home / "patches/FIX1.h5", "a") as file:
        large = np.stack([cv2.resize(tile, (256, 256)) for tile in file["img"][:]])
        del file["img"]
        file["img"] = large
    with pytest.raises(PekaError, match="FIX1.h5: .*256 .*FIX1.tif"):
        build(tmp_path / "cohort", options)
    shutil.copytree(hest_files / "hest1k/wsis", home / "wsis")
    text = "\n".join(build(tmp_path / "cohort", options))
    assert "FIX1: tiles of 256 px were cut again" in text
    cohort = open_cohort(tmp_path / "cohort")
    tiles, here = cohort.tiles(), np.flatnonzero(cohort.obs["sample"] == "FIX1")
    digests = {
        cohort.obs.barcode.iloc[i]: hashlib.sha256(tiles[i].tobytes()).hexdigest() for i in here
    }
    assert digests == {r["barcode"]: r["sha256"] for r in golden}
    with h5py.File(cohort.path / "patches/FIX1.h5") as file:
        assert file["coords"][:].tolist() == [r["coords"] for r in golden]
    monkeypatch.setattr(hest_slide, "LEVEL_1", 2.0)
    with pytest.raises(PekaError, match="FIX1.tif"):
        build(tmp_path / "fine", options)


# ---- HEST's own files --------------------------------------------------------------------------


def fixture_mirror(hest_files, tmp_path, monkeypatch, drawn=0):
    """A mirror of the three slides of `hest_files`, and drawn ones of the same genes."""
    home = tmp_path / "mirror/hest"
    for folder in ("st", "patches", "metadata", "wsis"):
        shutil.copytree(hest_files / "hest1k" / folder, home / folder)
    for file in home.rglob("*.*"):
        file.chmod(0o644)
    for folder in [home, *home.iterdir()]:
        folder.chmod(0o755)
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    golden = {
        s: json.loads((hest_files / f"golden/{s}.json").read_text())
        for s in ("FIX3", "FIX2", "FIX1")
    }
    rows = [
        row(
            s,
            g["n_spots_h5ad"],
            g["pixel_size_um"],
            patient="" if s == "FIX3" else "Patient C",
            dataset_title=s[:-1],
        )
        for s, g in golden.items()
    ]
    names = [ad.read_h5ad(home / f"st/{s}.h5ad").var_names for s in golden]
    genes = names[0].intersection(names[1]).intersection(names[2])
    for i in range(drawn):
        draw_slide(home, f"D{i}", genes, seed=i)
        rows.append(row(f"D{i}"))
    return home, write_index(home, rows)


def test_hests_own_files_are_read_spot_by_spot(hest_files, tmp_path, monkeypatch):
    _, options = fixture_mirror(hest_files, tmp_path, monkeypatch)
    build(tmp_path / "cohort", options)
    cohort = open_cohort(tmp_path / "cohort")
    with pytest.warns(UserWarning):
        cohort.validate()
    tiles, adata, compared = cohort.tiles(), cohort.adata(), 0
    for section in cohort.sections:
        golden = json.loads((hest_files / f"golden/{section.sample}.json").read_text())
        dense = (
            read_counts(open_section(section.sample, section.h5ad, None)).toarray().astype("<i8")
        )  # with and without a tile
        assert (
            hashlib.sha256(dense.tobytes()).hexdigest() == golden["h5ad"]["X_int64_C_order_sha256"]
        )
        genes = hashlib.sha256("\n".join(section.genes).encode()).hexdigest()
        assert genes == golden["h5ad"][
            "var_names_sha256_newline_joined"
        ] and section.without_tile == len(golden["no_patch"])
        assert cohort.samples.um_per_px[section.sample] == golden["pixel_size_um"]
        place = {barcode: i for i, barcode in enumerate(golden["barcodes_h5ad"])}
        for expected in golden["patches_h5"]["rows"]:
            spot = cohort.obs.index.get_loc(f"{section.sample}:{expected['barcode']}")
            i = place[expected["barcode"]]
            assert hashlib.sha256(tiles[spot].tobytes()).hexdigest() == expected["sha256"]
            assert cohort.obs.total_counts.iloc[spot] == golden["h5ad"]["counts_per_spot"][i]
            assert np.abs(adata.obsm["spatial"][spot] - golden["obsm_spatial"][i]).max() < 1e-6
            compared += 1
    assert compared == len(cohort) == 19
    assert cohort.samples.patient.to_dict() == {
        "FIX3": "FIX3",
        "FIX2": "Patient C of FIX",
        "FIX1": "Patient C of FIX",
    }


def test_strict_leaves_the_copy_out(mirror, tmp_path):
    build(tmp_path / "cohort", mirror[1])
    cohort = open_cohort(tmp_path / "cohort")
    for split in PROTOCOLS["strict"].splits(cohort):
        assert not (split.train | split.test)[cohort.obs["sample"] == "TENX23"].any()
        assert not set(cohort.obs.group[split.train]) & set(cohort.obs.group[split.test])
    assert scored(cohort) == {"hest_bench", "strict"}


def scored(cohort):
    """The protocols under which features of `mini` have a defined mean score."""
    features = load_encoder("mini", device="cpu").embed(cohort.tiles()[:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        means = {
            name: evaluate(cohort, features, name).genes.pcc.mean()
            for name in ("hest_bench", "strict")
        }
    return {name for name, mean in means.items() if np.isfinite(mean)}


def test_the_authors_genes_are_compared_where_the_mirror_has_them(mirror, tmp_path):
    (mirror[0] / hest.COHORTS["breast"].authors_genes).write_text(
        json.dumps({"genes": [*PANEL[:10], "NOSUCH"]})
    )
    build(tmp_path / "cohort", mirror[1])
    found = json.loads((tmp_path / "cohort/source.json").read_text())["authors_genes"]
    ours = open_cohort(tmp_path / "cohort").genes
    assert (found["genes"], found["in_every_slide"], found["shared_with_ours"]) == (
        11,
        10,
        len(set(ours) & set(PANEL[:10])),
    )
