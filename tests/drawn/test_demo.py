"""The demo: independent sections, a law that does what it says, a cohort like any other."""

import shutil
import subprocess
import sys

import numpy as np
import pytest

from peka_core.cohort import open_cohort
from peka_core.common.errors import PekaError
from peka_core.drawn import demo, drawing, law, oracle, painting

SMALL = {"seed": 5, "patients": 4, "sections": 2, "spots": 6, "workers": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return demo.build(tmp_path_factory.mktemp("on") / "cohort", **SMALL)


@pytest.fixture(scope="module")
def off(world, tmp_path_factory):
    return demo.build(
        tmp_path_factory.mktemp("off") / "cohort", **SMALL, hidden=0.0, counts_for=world
    )


def counts(path, **options):
    return open_cohort(path).adata(**options).X.toarray()


# ---------------------------------------------------------------- drawing


def test_section_depends_on_nothing_but_its_key():
    first = painting.tiles(drawing.plan_section(5, 2, 1, 6))
    painting.tiles(drawing.plan_section(5, 1, 1, 6))
    assert np.array_equal(painting.tiles(drawing.plan_section(5, 2, 1, 6)), first)
    for key in ((5, 2, 2), (5, 3, 1), (6, 2, 1)):
        assert not np.array_equal(painting.tiles(drawing.plan_section(*key, 6)), first)


def test_doubled_image_averages_to_the_drawn_one():
    image = painting.paint(drawing.plan_section(5, 1, 1, 6))
    doubled = painting.double(image).astype(float)
    means = doubled.reshape(image.shape[0], 2, image.shape[1], 2, 3).mean((1, 3))
    assert np.abs(means - image).max() < 4
    assert np.mean(np.abs(means - image) > 0.5) < 1e-3


def test_description_counts_the_cells_in_the_tile():
    section = drawing.plan_section(5, 1, 1, 6)
    described, nuclei = drawing.describe_tiles(section)
    x, y = section.centres[4]
    expected = np.zeros(6)
    radii = []
    for (cx, cy), kind, size, mitosis in zip(
        *(getattr(section.cells, k) for k in ("xy", "kind", "size", "mitosis"))
    ):
        if x - 56 <= cx <= x + 56 and y - 56 <= cy <= y + 56:
            expected[kind] += 1
            if kind == drawing.TUMOUR and not mitosis:
                radii.append(drawing.TUMOUR_RADII[size])
    assert np.array_equal(described[4], expected) and expected.sum() > 20
    assert nuclei[4, 0] == pytest.approx(np.mean(radii))


def test_dark_pixels_follow_the_cells():
    section = drawing.plan_section(5, 1, 1, 30)
    tiles = painting.cut(painting.paint(section), section.centres)
    darkness = (tiles[..., 0] < 130).mean((1, 2))
    cells = drawing.describe_tiles(section)[0][
        :, [drawing.TUMOUR, drawing.GLAND, drawing.LYMPHOCYTE]
    ].sum(1)
    assert np.corrcoef(darkness, cells)[0, 1] > 0.5


# ---------------------------------------------------------------- law


def test_uniform_numbers_give_poisson_gamma_counts():
    genes = law.draw_law(5)
    z = np.zeros((400, len(law.FACTORS)))
    drawn = law.draw_counts(genes, z, 5, 1, 1)
    share = law.frequencies(genes, z[:1], law.section_effect(5, 1, 1, len(genes.genes)))[0]
    observed = (drawn / drawn.sum(1, keepdims=True)).mean(0)
    top = np.argsort(share)[-20:]
    np.testing.assert_allclose(observed[top], share[top], rtol=0.15)
    mean, variance = drawn[:, top].mean(0), drawn[:, top].var(0)
    assert (variance > mean + mean**2 / law.DISPERSION * 0.7).all()


def test_hidden_moves_cue_loadings_only_and_keeps_their_size():
    on, half, none = (law.draw_law(5, hidden) for hidden in (1.0, 0.5, 0.0))
    composition, cues = on.group == "composition", slice(len(law.TYPES), None)
    for other in (half, none):
        assert np.array_equal(on.loading[:, composition], other.loading[:, composition])
        assert np.array_equal(on.baseline, other.baseline)
    assert np.abs(none.loading[cues]).max() < 6 * law.STRAY
    strength = [np.linalg.norm(w.loading[:, ~composition], axis=0) for w in (on, half, none)]
    np.testing.assert_allclose(strength[0], strength[1], atol=0.35)
    np.testing.assert_allclose(strength[0], strength[2], atol=0.35)


def test_cue_genes_follow_their_cue_in_the_counts(world):
    adata = open_cohort(world).adata()
    stored = np.load(world / "law.npz")
    y = np.log1p(adata.X.toarray())
    z = adata.obsm["z"]
    loading = stored["loading"][6:, stored["group"] == "cue"]
    agree = []
    for cue in (0, 1):
        strong = np.flatnonzero(np.abs(loading[cue]) > 0.4)
        r = np.array([np.corrcoef(z[:, 6 + cue], y[:, 360 + g])[0, 1] for g in strong])
        agree.append(np.mean(np.nan_to_num(r) * np.sign(loading[cue, strong])))
    assert min(agree) > 0.15


# ---------------------------------------------------------------- oracle


def brute_force(stored, z, effect, redraws=2000):
    """log1p(CP10K) of one spot, redrawn and averaged, from the law's text with its numbers."""
    rng = np.random.default_rng(99)
    shape = (redraws, len(stored["genes"]))
    e = rng.normal(0, np.sqrt(0.35**2 + 0.12**2), shape) if effect is None else effect
    f = np.exp(
        stored["baseline"]
        + sum(z[k] * stored["loading"][k] for k in range(8))
        + np.broadcast_to(e, shape)
    )
    depth = (
        rng.normal(0, 0.25, redraws) + rng.normal(0, 0.17, redraws) + rng.normal(0, 0.35, redraws)
    )
    c = rng.poisson((3000 * np.exp(depth) / f.sum(1))[:, None] * f * rng.gamma(5, 1 / 5, shape))
    return np.log1p(c / c.sum(1)[:, None] * 1e4).mean(0)


@pytest.mark.parametrize("redraw", ["patients", "nothing"])
def test_oracle_equals_a_brute_force_mean(world, redraw):
    adata = open_cohort(world).adata()
    stored = np.load(world / "law.npz")
    rows = [0, 20, 53]
    names = adata.obs["sample"].iloc[rows]
    effect = (
        stored["effect"][[list(stored["samples"]).index(name) for name in names]]
        if redraw == "nothing"
        else None
    )
    z = adata.obsm["z"][rows]
    expected = np.stack(
        [brute_force(stored, z[i], None if effect is None else effect[i]) for i in range(3)]
    )
    exact = law.expected_target(law.draw_law(5), z, effect, 2000, 1)
    assert (
        np.abs(exact - expected).mean() < 0.03 and np.abs((exact - expected).mean(1)).max() < 0.01
    )
    quick = oracle.expected_targets(world, redraw)[rows]
    assert np.abs(quick - expected).mean() < 0.15
    assert np.corrcoef(quick.ravel(), expected.ravel())[0, 1] > 0.98


def test_oracle_predicts_the_counts_and_known_effects_help(world):
    x = counts(world)
    y = np.log1p(1e4 * x / x.sum(1, keepdims=True))
    expressed = x.mean(0) > 1

    def error(prediction):
        return ((prediction - y)[:, expressed] ** 2).mean()

    new, known = (
        oracle.expected_targets(world, "patients"),
        oracle.expected_targets(world, "nothing"),
    )
    assert error(known) < error(new) < y[:, expressed].var(0).mean()
    assert error(known) < error(np.roll(known, 7, axis=0))


def test_oracle_given_a_count_is_higher_and_is_reproducible(world):
    every, positive = (
        oracle.expected_targets(world, redraws=16),
        oracle.expected_targets(world, redraws=16, positive_only=True),
    )
    assert (positive >= every - 1e-6).all() and (positive > every + 0.1).mean() > 0.3
    assert np.array_equal(every, oracle.expected_targets(world, redraws=16))
    with pytest.raises(ValueError, match="patients"):
        oracle.expected_targets(world, "everything")


# ---------------------------------------------------------------- cohort


def test_cohort_opens_without_complaint(world):
    cohort = open_cohort(world)
    assert len(cohort.samples) == 9 and len(cohort.obs) == 54 and len(cohort.genes) == 50
    assert set(cohort.obs["tissue_type"]) <= set(drawing.TYPES)
    with pytest.warns(UserWarning, match=r"X01 \(6 spots\) is a copy of P03A"):
        assert len(cohort.validate()) == 1


def test_z_is_standardised_over_the_drawn_sections(world):
    z = (
        open_cohort(world)
        .adata(samples=[f"P{p:02d}{s}" for p in range(1, 5) for s in "AB"])
        .obsm["z"]
    )
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(0), 1, atol=1e-4)


def test_copy_is_identical_and_never_separated_from_its_original(world):
    cohort = open_cohort(world)
    tiles, sample = cohort.tiles(), cohort.obs["sample"].to_numpy()
    assert np.array_equal(tiles[sample == "X01"], tiles[sample == "P03A"])
    assert np.array_equal(counts(world, samples=["X01"]), counts(world, samples=["P03A"]))
    assert cohort.samples.loc["X01", "group"] == cohort.samples.loc["P03A", "group"]
    for split in cohort.splits:
        assert split.scheme == "patients"
        assert split.test[sample == "X01"].all() == split.test[sample == "P03A"].all()
        assert not set(cohort.obs["group"][split.train]) & set(cohort.obs["group"][split.test])
    assert (sum(split.test.astype(int) for split in cohort.splits) == 1).all()


def test_other_world_has_the_same_tiles_and_other_counts_of_cue_genes(world, off):
    on, none = open_cohort(world), open_cohort(off)
    assert none.samples.tiles_sha256.equals(on.samples.tiles_sha256) and not none.has_tiles
    assert np.array_equal(on.adata().obsm["z"], none.adata().obsm["z"])
    cue = (on.adata().var["group"] == "cue").to_numpy()
    x, y = counts(world), counts(off)
    changed = (x != y).mean(0)
    assert changed[cue].mean() > changed[~cue].mean() + 0.1
    strong = np.flatnonzero(
        ~cue & (x.mean(0) > 5)
    )  # shares sum to 1, so composition genes change a little
    assert min(np.corrcoef(x[:, g], y[:, g])[0, 1] for g in strong) > 0.5
    assert on.digest != none.digest


def test_more_patients_and_more_workers_leave_a_section_alone(world, tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "ONE_PROCESS", 0)
    larger = demo.build(
        tmp_path / "cohort", **{**SMALL, "patients": 5, "sections": 1, "workers": 2}
    )
    a, b = open_cohort(world), open_cohort(larger)
    for name in ("P01A", "P04A"):
        assert np.array_equal(
            a.tiles()[(a.obs["sample"] == name).to_numpy()],
            b.tiles()[(b.obs["sample"] == name).to_numpy()],
        )


@pytest.mark.parametrize("first", ["with alone({path!r}):", "if True:"])
def test_a_script_without_a_guard_ends_with_what_to_do(tmp_path, first):
    """Each worker runs the script again; it must not wait for its parent nor start workers."""
    script, path = tmp_path / "mine.py", str(tmp_path / "cohort")
    script.write_text(
        "from peka_core.common.files import alone\nfrom peka_core.drawn import demo\n"
        "demo.ONE_PROCESS = 0\n"
        f"{first.format(path=path)}\n    demo.build({path!r}, **{SMALL | {'workers': 2}})\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    last = done.stderr.rstrip().splitlines()[-1]
    assert (
        done.returncode
        and last.startswith("peka_core.common.errors.PekaError")
        and str(script) in last
        and 'if __name__ == "__main__"' in last
    )
    assert "free memory" not in last and "RuntimeError" not in done.stderr


def test_second_build_changes_nothing_and_a_half_finished_one_continues(world, tmp_path):
    path = tmp_path / "cohort"
    shutil.copytree(world, path)
    before = {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    demo.build(path, **SMALL)
    assert before == {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}

    (path / "source.json").rename(path / "unfinished.json")
    (path / "adata/P02B.h5ad").unlink()
    (path / "patches/P04A.h5").unlink()
    demo.build(path, **SMALL)
    assert open_cohort(path).digest == open_cohort(world).digest
    assert np.array_equal(open_cohort(path).tiles()[:], open_cohort(world).tiles()[:])
    assert (path / "adata/P01A.h5ad").stat().st_mtime_ns == before[path / "adata/P01A.h5ad"]
    assert not (path / "unfinished.json").exists()


def test_cohort_without_tiles_gets_them_later(tmp_path, world):
    path = tmp_path / "cohort"
    shutil.copytree(world, path, ignore=shutil.ignore_patterns("patches"))
    demo.build(path, **SMALL, tiles=False)
    assert not (path / "patches").exists() and not open_cohort(path).has_tiles
    assert open_cohort(path).digest == open_cohort(world).digest
    before = {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}
    times = {p: p.stat().st_mtime_ns for p in before}
    demo.build(path, **SMALL)
    assert np.array_equal(open_cohort(path).tiles()[:], open_cohort(world).tiles()[:])
    assert all(
        p.read_bytes() == content and p.stat().st_mtime_ns == times[p]
        for p, content in before.items()
    )
    assert {p.parent.name for p in path.rglob("*") if p.is_file() and p not in before} == {
        "patches"
    }
    assert (path / "patches/X01.h5").samefile(path / "patches/P03A.h5")


def test_drawing_tiles_that_is_interrupted_leaves_the_finished_cohort_as_it_was(
    tmp_path, world, monkeypatch
):
    path, real, painted = tmp_path / "cohort", demo.write_tiles_of, []
    shutil.copytree(world, path, ignore=shutil.ignore_patterns("patches"))

    def dies_late(task):
        painted.append(task[1])
        if len(painted) == 5:
            raise KeyboardInterrupt
        real(task)

    monkeypatch.setattr(demo, "write_tiles_of", dies_late)
    with pytest.raises(KeyboardInterrupt):
        demo.build(path, **SMALL)
    assert not open_cohort(path).has_tiles and (path / "source.json").exists()
    demo.build(path, **SMALL)
    assert len(painted) == len(set(painted)) + 1 == 9, "finished tiles are not drawn twice"
    assert np.array_equal(open_cohort(path).tiles()[:], open_cohort(world).tiles()[:])
    assert not [
        p for p in path.rglob("*") if p.is_dir() and p.name not in ("adata", "patches", "splits")
    ]


def test_directory_of_another_cohort_is_refused(world, tmp_path):
    with pytest.raises(PekaError, match="source.json"):
        demo.build(world, **{**SMALL, "seed": 6})
    with pytest.raises(PekaError, match="source.json"):
        demo.build(tmp_path / "cohort", **{**SMALL, "seed": 6}, counts_for=world)
    (tmp_path / "foreign" / "adata").mkdir(parents=True)
    with pytest.raises(PekaError, match="foreign"):
        demo.build(tmp_path / "foreign", **SMALL)
