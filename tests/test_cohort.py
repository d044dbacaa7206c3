"""A cohort: what it gives, its digest, and HEST's own files."""

import hashlib
import json
import shutil

import anndata as ad
import h5py
import numpy as np
import pytest
from damage import edit_h5, edit_h5ad, edit_samples, keep_tiles

from peka_core import genes
from peka_core.cohort import open_cohort
from peka_core.common.errors import PekaError
from peka_core.common.files import sha256
from peka_core.common.folders import cache_folder
from peka_core.genes import log_cp10k
from peka_core.layout import duplicates

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def test_spots_tiles_and_counts_belong_together(tiny_cohort):
    cohort = open_cohort(tiny_cohort)
    adata, tiles = cohort.adata(), cohort.tiles()
    assert adata.obs.equals(cohort.obs) and cohort.obs.index[13] == "P1B:1x1"
    for spot in (0, 11, 40, 95):
        sample, barcode = cohort.obs.index[spot].split(":")
        with h5py.File(tiny_cohort / "patches" / f"{sample}.h5") as file:
            names = [b.decode() for b in file["barcode"][:, 0]]
            assert np.array_equal(tiles[spot][0], file["img"][names.index(barcode)])
        raw = ad.read_h5ad(tiny_cohort / "adata" / f"{sample}.h5ad")
        assert np.array_equal(adata.X[spot].toarray(), raw[barcode].X.toarray())
        assert np.array_equal(adata.obsm["spatial"][spot], raw[barcode].obsm["spatial"][0])
    assert cohort.obs.total_counts.sum() == adata.X.sum() and cohort.validate() == []


def test_tiles_come_in_any_order_from_disk_and_memory(tiny_cohort):
    cohort = open_cohort(tiny_cohort)
    everything, fresh = cohort.tiles()[:], cohort.tiles()
    mixed, some = np.array([50, 3, 95, 3, 4, 0]), np.arange(96) % 7 == 0
    assert np.array_equal(fresh[mixed], everything[mixed])
    assert np.array_equal(fresh[some], everything[::7])
    assert np.array_equal(fresh[:50], everything[:50]) and len(fresh[50:]) == 46
    shutil.rmtree(tiny_cohort / "patches")  # all tiles were read once, so they are in memory
    assert np.array_equal(fresh[mixed], everything[mixed])


def test_splits_leave_patients_out_and_a_duplicate_joins_patients(tiny_cohort):
    cohort = open_cohort(tiny_cohort)
    assert [s.name for s in cohort.splits] == [f"patients/{i}" for i in range(4)]
    assert all((s.train ^ s.test).all() for s in cohort.splits)
    assert set(cohort.obs.patient[cohort.splits[2].test]) == {"P3"}
    edit_samples(tiny_cohort, duplicate_of=["", "", "", "P1A", "", "", "", "P2A"])
    cohort = open_cohort(tiny_cohort)
    assert list(cohort.samples.group) == ["P1"] * 4 + ["P3"] * 2 + ["P1"] * 2
    assert [s.scheme for s in cohort.splits] == ["sections", "sections", "patients", "sections"]
    with pytest.warns(UserWarning, match="splits"):
        cohort.validate()


def test_genes_are_joined_inner_or_outer_with_totals_over_all_genes(tiny_cohort):
    before = open_cohort(tiny_cohort).adata()
    edit_h5ad(tiny_cohort / "adata/P1A.h5ad", lambda a: a[:, ["G29", "G00", "G07"]].copy())
    cohort = open_cohort(tiny_cohort)
    inner, outer = cohort.adata(), cohort.adata(join="outer")
    assert list(inner.var_names) == ["G29", "G00", "G07"]
    assert (inner.X != before[:, inner.var_names].X).nnz == 0
    assert outer.shape == (96, 30) and outer[:12, "G01"].X.sum() == 0
    assert (outer[12:, before.var_names].X != before[12:].X).nnz == 0
    assert inner.obs.total_counts[12:].equals(before.obs.total_counts[12:])


def test_some_genes_and_single_sections_are_those_of_the_whole_table(tiny_cohort):
    edit_h5ad(tiny_cohort / "adata/P1A.h5ad", lambda a: a[:, ["G29", "G00", "G07"]].copy())
    cohort = open_cohort(tiny_cohort)
    for join, names in (("inner", ["G07", "G29"]), ("outer", ["G01", "G07"])):
        whole, some = cohort.adata(join=join), cohort.adata(join=join, genes=names)
        assert list(some.var_names) == names and (some.X != whole[:, names].X).nnz == 0
        assert some.obs.equals(whole.obs) and some.var.equals(whole[:, names].var)
        sections = list(cohort.by_section(join))
        assert all(section.var_names.equals(whole.var_names) for section in sections)
        joined = ad.concat(sections)
        assert (joined.X != whole.X).nnz == 0 and joined.obs.equals(whole.obs)
    with pytest.raises(PekaError, match="G01"):
        cohort.adata(genes=["G01"])


def test_log_counts_of_blocks_of_spots_are_those_of_all(tiny_cohort, monkeypatch):
    adata = open_cohort(tiny_cohort).adata()
    before, whole = adata.X.copy(), log_cp10k(adata)
    monkeypatch.setattr(genes, "BLOCK", 7)
    np.testing.assert_array_equal(log_cp10k(adata), whole)
    np.testing.assert_array_equal(log_cp10k(adata[5:20]), whole[5:20])
    assert (before != adata.X).nnz == 0


def test_log_cp10k_is_the_formula_and_its_totals_are_sums_of_counts(tiny_cohort):
    adata = open_cohort(tiny_cohort).adata()
    own = ad.AnnData(adata.X.toarray(), var=adata.var)
    np.testing.assert_allclose(log_cp10k(own), log_cp10k(adata))  # its totals are the same here
    adata.obs.loc["P1A:3x1", "total_counts"] = 0
    adata.X.data[adata.X.indptr[3] : adata.X.indptr[4]] = 0  # stored zeros
    total = np.maximum(adata.obs[["total_counts"]].to_numpy(), 1)
    got = log_cp10k(adata)
    np.testing.assert_allclose(got, np.log(1 + 1e4 * adata.X.toarray() / total), rtol=1e-6)
    np.testing.assert_array_equal(log_cp10k(adata, dense=False).toarray(), got)
    for wrong in (np.nan, -1):
        adata.obs.loc["P1A:3x1", "total_counts"] = wrong
        with pytest.raises(PekaError, match="P1A:3x1"):
            log_cp10k(adata)


def test_digest_follows_values_and_not_files(tiny_cohort, drawn_once):
    original = open_cohort(drawn_once)
    densify = lambda a: setattr(a, "X", a.X.toarray().astype(np.int64))
    edit_h5ad(tiny_cohort / "adata/P2A.h5ad", densify)
    assert open_cohort(tiny_cohort).digest == original.digest
    shutil.rmtree(tiny_cohort / "patches")
    (tiny_cohort / "patches").mkdir()
    (tiny_cohort / "patches/.0123abcd-P1A.h5").write_bytes(b"half")  # of a killed writer
    bare = open_cohort(tiny_cohort)
    assert not bare.has_tiles and len(bare) == 96
    seen = {original.digest, bare.digest}  # the tiles have another order than the spots
    edit_h5ad(tiny_cohort / "adata/P4B.h5ad", lambda a: a.X.data.__setitem__(0, a.X.data[0] + 1))
    seen.add(open_cohort(tiny_cohort).digest)
    for name, old, new in (
        ("var_20genes.json", "G03", "G25"), ("samples.csv", "drawn", "Visium"),
        ("splits/test_0.csv", "P1B,patches/P1B.h5,adata/P1B.h5ad\n", ""),
    ):  # fmt: skip
        file = tiny_cohort / name
        file.write_text(file.read_text().replace(old, new))
        seen.add(open_cohort(tiny_cohort).digest)
    assert len(seen) == 6


def set_pixel(file, value):
    with h5py.File(file, "r+") as h5:
        h5["img"][0, 0, 0, 0] = value


def test_without_a_tiles_column_pixels_enter_the_digest_and_are_read_once(tiny_cohort, monkeypatch):
    edit_samples(tiny_cohort, tiles_sha256="")
    file, record = tiny_cohort / "patches/P1A.h5", cache_folder() / duplicates.RECORD
    before = open_cohort(tiny_cohort).digest
    with file.open("ab") as handle:
        handle.write(b"\0" * 512)
    keep_tiles(file, np.random.default_rng(0).permutation(12))
    assert open_cohort(tiny_cohort).digest == before, "the same tiles, stored otherwise"
    with monkeypatch.context() as patch:
        patch.setattr(duplicates, "_digest", lambda *_: pytest.fail("hashed again"))
        assert open_cohort(tiny_cohort).digest == before
    assert not list(tiny_cohort.glob("*digests*")) and len(json.loads(record.read_text())) == 8
    record.write_text("[")
    assert open_cohort(tiny_cohort).digest == before, "a damaged record is no record"
    set_pixel(file, 1 + open_cohort(tiny_cohort).tiles()[:].max() // 2)
    assert open_cohort(tiny_cohort).digest != before


def test_a_tiles_column_of_other_tiles_does_not_count(tiny_cohort):
    before, file = open_cohort(tiny_cohort).digest, tiny_cohort / "patches/P1A.h5"
    with h5py.File(file) as h5:
        barcodes = h5["barcode"][:]
    edit_h5(file, barcode=np.roll(barcodes, 1, axis=0))  # pixels have the same tiles_sha256
    seen = {before, open_cohort(tiny_cohort).digest}
    edit_h5(file, barcode=barcodes)
    for value in (7, 8):
        set_pixel(file, value)
        with pytest.warns(UserWarning, match="P1A.h5"):
            seen.add(open_cohort(tiny_cohort).digest)
    assert len(seen) == 4
    (tiny_cohort / "source.json").write_text('{"source": "demo"}')  # its column is not of pixels
    assert open_cohort(tiny_cohort).digest == before
    (tiny_cohort / "source.json").unlink()
    files = [tiny_cohort / f"patches/{s}.h5" for s in open_cohort(tiny_cohort).samples.index]
    edit_samples(tiny_cohort, tiles_sha256=[sha256(file) for file in files])
    assert open_cohort(tiny_cohort).digest not in seen  # a file's own digest is right, no warning


def test_both_forms_of_hests_files_open_with_their_own_spots(hest_files, tmp_path):
    with pytest.warns(UserWarning, match="no samples.csv"):
        task = open_cohort(hest_files / "bench/FIXTASK")
    assert [s.name for s in task.splits] == ["patients/0", "patients/1"]
    assert task.obs.in_tissue.dtype == np.int64  # bool in two sections, 0/1 in the third
    digests = {}
    for name in task.samples.index:
        golden = json.loads((hest_files / f"golden/{name}.json").read_text())["legacy_patches_h5"]
        digests |= {f"{name}:{row['barcode']}": row["sha256"] for row in golden["rows"]}
    pixels = [hashlib.sha256(tile.tobytes()).hexdigest() for tile in task.tiles()[:]]
    assert dict(zip(task.obs.index, pixels, strict=True)) == digests
    for kind, folder in (("adata", "st"), ("patches", "patches")):
        (tmp_path / kind).symlink_to(hest_files / "hest1k" / folder)
    with pytest.warns(UserWarning, match="no samples.csv"):
        current = open_cohort(tmp_path)
    assert (len(task), len(current)) == (13, 19)
    assert np.allclose(current.samples.um_per_px, task.samples.um_per_px)
