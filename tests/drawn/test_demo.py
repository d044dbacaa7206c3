"""The demo: independent sections, a law that does what it says, a cohort like any other."""

import shutil

import numpy as np
import pytest
from damage import refused

from peka_core.cohort import open_cohort
from peka_core.drawn import demo, drawing, law, oracle, painting

SMALL = {"seed": 5, "patients": 4, "sections": 2, "spots": 6, "workers": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return demo.build(tmp_path_factory.mktemp("on") / "cohort", **SMALL)


@pytest.fixture(scope="module")
def on(world):
    """Opened, with its counts and its tiles."""
    cohort = open_cohort(world)
    return cohort, cohort.adata(), cohort.tiles()[:]


def test_the_description_counts_the_cells_that_the_pixels_show():
    section = drawing.plan_section(5, 1, 1, 30)
    described, nuclei = drawing.describe_tiles(section)
    cells = section.cells
    tile = described[:, drawing.TUMOUR].argmax()
    inside = (np.abs(cells.xy - section.centres[tile]) <= 56).all(1)
    assert np.array_equal(described[tile], np.bincount(cells.kind[inside], minlength=6))
    tumour = inside & (cells.kind == drawing.TUMOUR) & (cells.mitosis == 0)
    assert nuclei[tile, 0] == pytest.approx(drawing.TUMOUR_RADII[cells.size[tumour]].mean())
    dark = (painting.cut(painting.paint(section), section.centres)[..., 0] < 130).mean((1, 2))
    kinds = [drawing.TUMOUR, drawing.GLAND, drawing.LYMPHOCYTE]
    assert np.corrcoef(dark, described[:, kinds].sum(1))[0, 1] > 0.5


def test_uniform_numbers_give_poisson_gamma_counts():
    genes, z = law.draw_law(5), np.zeros((400, len(law.FACTORS)))
    drawn = law.draw_counts(genes, z, 5, 1, 1)
    share = law.frequencies(genes, z[:1], law.section_effect(5, 1, 1, len(genes.genes)))[0]
    top = np.argsort(share)[-20:]
    observed = (drawn / drawn.sum(1, keepdims=True)).mean(0)
    np.testing.assert_allclose(observed[top], share[top], rtol=0.15)
    mean, variance = drawn[:, top].mean(0), drawn[:, top].var(0)
    assert (variance > mean + mean**2 / law.DISPERSION * 0.7).all()


def test_hidden_moves_cue_loadings_only_and_keeps_their_size():
    on, half, none = (law.draw_law(5, hidden) for hidden in (1.0, 0.5, 0.0))
    composition, cues = on.group == "composition", slice(len(law.TYPES), None)
    strength = lambda world: np.linalg.norm(world.loading[:, ~composition], axis=0)
    for other in (half, none):
        assert np.array_equal(on.loading[:, composition], other.loading[:, composition])
        assert np.array_equal(on.baseline, other.baseline)
        np.testing.assert_allclose(strength(on), strength(other), atol=0.35)
    assert np.abs(none.loading[cues]).max() < 6 * law.STRAY


def brute_force(stored, z, effect, redraws=2000):
    """log1p(CP10K) of one spot, redrawn and averaged, from the law's text with its numbers."""
    rng, shape = np.random.default_rng(99), (redraws, len(stored["genes"]))
    e = rng.normal(0, np.sqrt(0.35**2 + 0.12**2), shape) if effect is None else effect
    log_f = stored["baseline"] + sum(z[k] * stored["loading"][k] for k in range(8))
    f = np.exp(log_f + np.broadcast_to(e, shape))
    depth = sum(rng.normal(0, sd, redraws) for sd in (0.25, 0.17, 0.35))
    c = rng.poisson((3000 * np.exp(depth) / f.sum(1))[:, None] * f * rng.gamma(5, 1 / 5, shape))
    return np.log1p(c / c.sum(1)[:, None] * 1e4).mean(0)


@pytest.mark.parametrize("redraw", ["patients", "nothing"])
def test_oracle_equals_a_brute_force_mean(world, on, redraw):
    stored, rows = np.load(world / "law.npz"), [0, 20, 53]
    names, z = on[1].obs["sample"].iloc[rows], on[1].obsm["z"][rows]
    known = stored["effect"][[list(stored["samples"]).index(name) for name in names]]
    effects, effect = (known, known) if redraw == "nothing" else ([None] * 3, None)
    expected = np.stack([brute_force(stored, *spot) for spot in zip(z, effects)])
    exact = law.expected_target(law.draw_law(5), z, effect, 2000, 1)[0] - expected
    assert np.abs(exact).mean() < 0.03 and np.abs(exact.mean(1)).max() < 0.01
    quick = oracle.expected_targets(world, redraw)[0][rows]
    assert np.abs(quick - expected).mean() < 0.15
    assert np.corrcoef(quick.ravel(), expected.ravel())[0, 1] > 0.98


def test_oracle_predicts_the_counts_and_what_is_known_helps(world, on):
    x = on[1].X.toarray()
    y, expressed = np.log1p(1e4 * x / x.sum(1, keepdims=True)), x.mean(0) > 1
    error = lambda prediction: ((prediction - y)[:, expressed] ** 2).mean()
    new, positive = oracle.expected_targets(world, "patients")
    known, _ = oracle.expected_targets(world, "nothing")
    assert error(known) < error(new) < y[:, expressed].var(0).mean()
    assert error(known) < error(np.roll(known, 7, axis=0))
    assert np.array_equal(new, oracle.expected_targets(world)[0]), "it is reproducible"
    assert (positive >= new - 1e-6).all() and (positive > new + 0.1).mean() > 0.3, (
        "given a count: higher"
    )


def test_the_cohort_holds_one_copy_that_never_leaves_its_original(on):
    cohort, adata, tiles = on
    assert len(cohort.samples) == 9 and len(cohort.obs) == 54 and len(cohort.genes) == 50
    with pytest.warns(UserWarning, match=r"X01 .*P03A"):
        assert len(cohort.validate()) == 1
    sample = cohort.obs["sample"].to_numpy()
    copy, original = sample == "X01", sample == "P03A"
    z = adata.obsm["z"][~copy]
    np.testing.assert_allclose([z.mean(0), z.std(0) - 1], 0, atol=1e-4)
    assert np.array_equal(tiles[copy], tiles[original])
    assert (adata.X[copy] != adata.X[original]).nnz == 0
    assert cohort.samples.group["X01"] == cohort.samples.group["P03A"]
    for split in cohort.splits:
        assert split.scheme == "patients" and split.test[copy].all() == split.test[original].all()
        assert not set(cohort.obs["group"][split.train]) & set(cohort.obs["group"][split.test])
    assert (sum(split.test.astype(int) for split in cohort.splits) == 1).all()


def test_other_world_has_the_same_tiles_and_other_counts_of_cue_genes(world, on, tmp_path):
    cohort, adata, _ = on
    none = open_cohort(demo.build(tmp_path / "off", **SMALL, hidden=0.0, counts_for=world))
    assert none.samples.tiles_sha256.equals(cohort.samples.tiles_sha256) and not none.has_tiles
    assert np.array_equal(adata.obsm["z"], none.adata().obsm["z"]) and cohort.digest != none.digest
    cue, x, y = adata.var["group"].to_numpy() == "cue", adata.X.toarray(), none.adata().X.toarray()
    assert (x != y)[:, cue].mean() > (x != y)[:, ~cue].mean() + 0.1
    strong = np.flatnonzero(~cue & (x.mean(0) > 5))  # shares sum to 1, so these change a little
    assert min(np.corrcoef(x[:, g], y[:, g])[0, 1] for g in strong) > 0.5


def test_builds_that_were_interrupted_go_on_and_leave_what_is_there(
    world, on, tmp_path, monkeypatch
):
    state = lambda: {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file()}
    path, real, painted = shutil.copytree(world, tmp_path / "cohort"), demo.write_tiles_of, []

    def build_is_whole():
        cohort = open_cohort(demo.build(path, **SMALL))
        assert cohort.digest == on[0].digest and np.array_equal(cohort.tiles()[:], on[2])
        assert {p.name for p in path.rglob("*") if p.is_dir()} == {"adata", "patches", "splits"}

    def dies_late(task):
        painted.append(task[1])
        if len(painted) == 5:
            raise KeyboardInterrupt
        real(task)

    before = state()
    demo.build(path, **SMALL)
    assert state() == before, "a second build changes nothing"
    (path / "source.json").rename(path / "unfinished.json")
    (path / "adata/P02B.h5ad").unlink()
    (path / "patches/P04A.h5").unlink()
    build_is_whole()
    assert state()[path / "adata/P01A.h5ad"] == before[path / "adata/P01A.h5ad"]
    shutil.rmtree(path / "patches")
    before = state()
    demo.build(path, **SMALL, tiles=False)
    monkeypatch.setattr(demo, "write_tiles_of", dies_late)
    with pytest.raises(KeyboardInterrupt):
        demo.build(path, **SMALL)
    assert not open_cohort(path).has_tiles and open_cohort(path).digest == on[0].digest
    build_is_whole()
    assert state().items() >= before.items(), "tiles that come later change no other file"
    assert (path / "patches/X01.h5").samefile(path / "patches/P03A.h5")
    assert len(painted) == len(set(painted)) + 1 == 9, "finished tiles are not drawn twice"


def test_directory_of_another_cohort_is_refused(world, tmp_path):
    (tmp_path / "foreign" / "adata").mkdir(parents=True)
    build = lambda other: lambda path: demo.build(path, **SMALL | other)
    refused(world, "source.json", call=build({"seed": 6}))
    refused(tmp_path / "new", "source.json", call=build({"seed": 6, "counts_for": world}))
    refused(tmp_path / "foreign", "foreign", call=build({}))
