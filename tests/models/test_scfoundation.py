"""scFoundation against golden outputs of the official code on drawn cells and weights."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FILES, SHARED
from scipy import sparse

from peka_core.common import folders
from peka_core.common.errors import PekaError
from peka_core.common.files import sha256
from peka_core.downloads import manifest
from peka_core.models import scfoundation
from peka_core.models.scfoundation_network import Layout, build_network, read_checkpoint
from peka_core.teachers import embed_spots, load_teacher

FIXTURES = Path(__file__).parents[1] / "fixtures" / "scfoundation"
CHECKPOINT = FIXTURES / "scfoundation_tiny.ckpt"
SPEC = json.loads((FIXTURES / "spec.json").read_text())
EDGES = json.loads((FIXTURES / "edge_cases.json").read_text())
LIMIT = {"rtol": SPEC["tolerance"]["rtol"], "atol": SPEC["tolerance"]["atol"]}
INPUTS, EXPECTED = np.load(FIXTURES / "inputs.npz"), np.load(FIXTURES / "expected.npz")
GENES = pd.read_csv(FIXTURES / "input_genes.tsv", sep="\t", keep_default_na=False)
CELLS = [cell["name"] for cell in SPEC["cells"]]
N_GENES = 19_264
FEW = [0, 1, 3, 4, 5]  # without the dense cell, whose attention takes most of the time


def cells(values="counts", rows=slice(None)) -> anndata.AnnData:
    """The six drawn cells, raw (`counts`) or normalised (`lognorm`)."""
    parts = (INPUTS[values].astype(np.float32), INPUTS["indices"].astype(int), INPUTS["indptr"])
    x = sparse.csr_matrix(parts, INPUTS["shape"])
    obs = pd.DataFrame({"vocab_total": INPUTS["vocab_total"]}, index=CELLS)
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES["gene"]))[rows].copy()


def few(values="counts") -> anndata.AnnData:
    return cells(values, FEW)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Path:
    """A vocabulary with the drawn genes at their true places, and made-up names elsewhere."""
    names = np.array([f"unnamed_{i}" for i in range(N_GENES)], dtype=object)
    known = GENES[GENES["vocab_index"] >= 0]
    names[known["vocab_index"]] = known["gene"]
    path = tmp_path_factory.mktemp("vocabulary") / "genes.tsv"
    pd.DataFrame({"gene_name": names, "index": range(N_GENES)}).to_csv(path, sep="\t", index=False)
    return path


@pytest.fixture
def teacher(vocabulary):
    """Makes a teacher with the tiny weights."""
    own = {"checkpoint": CHECKPOINT, "vocabulary": vocabulary, "device": "cpu"}
    return lambda **options: load_teacher("scfoundation", **own | options)


def one_cell(counts: dict[str, float], name="cell") -> anndata.AnnData:
    """A cell with these counts, among 300 genes that it does not express."""
    genes = list(counts) + [gene for gene in GENES["gene"][:300] if gene not in counts]
    x = sparse.csr_matrix(np.array([[counts.get(gene, 0) for gene in genes]], np.float32))
    return anndata.AnnData(x, obs=pd.DataFrame(index=[name]), var=pd.DataFrame(index=genes))


IN = GENES["gene"][GENES["vocab_index"] >= 0].tolist()
OUT = GENES["gene"][GENES["vocab_index"] < 0].tolist()
UPSTREAM_EDGES = {  # as in edge_cases.json
    "all_zero": one_cell({}),
    "only_nonvocab": one_cell({OUT[0]: 5, OUT[1]: 2}),
    "total_1_one_gene": one_cell({IN[7]: 1}),
    "total_2_one_gene": one_cell({IN[7]: 2}),
}

# ---- golden outputs ------------------------------------------------------------------------------


@pytest.mark.parametrize("key", list(EXPECTED))
def test_embeddings_are_those_of_the_official_code(teacher, key):
    assert set(EXPECTED) == set(SPEC["expected_keys"]) and len(EXPECTED.files) == 35
    mode, pre_normalized, target, pool = key.split("|")
    model = teacher(mode=mode, pre_normalized=pre_normalized, target=target, pool=pool)
    made = model.fit(None).embed(cells("counts" if pre_normalized == "F" else "lognorm"))
    assert made.dtype == np.float32 and list(made.shape) == SPEC["expected_keys"][key]
    np.testing.assert_allclose(made, EXPECTED[key], **LIMIT)


def test_every_stage_of_one_cell_is_that_of_the_official_code(teacher):
    model, one = teacher(mode="cell", target="t4"), cells(rows=[1])
    packed, network, found = model.tokenise(one, model.examine(one)), model.network, {}
    hooks = {"token_emb": network.token_emb, "after_final_norm": network.encoder.norm}
    layers = network.encoder.transformer_encoder
    hooks |= {f"after_layer{i}": layer for i, layer in enumerate(layers)}
    for name, module in hooks.items():
        keep = lambda module, given, out, name=name: found.update({name: out})
        module.register_forward_hook(keep)
    keep = lambda module, given: found.update(encoder_input=given[0])
    network.encoder.register_forward_pre_hook(keep)
    values, ids, lengths = (torch.from_numpy(part) for part in packed)
    found["pooled_all"] = network(values, ids, lengths)[0]
    found |= {"bin_weights": network.token_emb.weights(values)}
    found |= {"token_values": values, "token_ids": ids}
    golden = np.load(FIXTURES / "intermediates.npz")
    assert set(found) == set(golden)
    np.testing.assert_array_equal(ids, golden["token_ids"])
    for name, value in found.items():
        np.testing.assert_allclose(value, golden[name], **LIMIT, err_msg=name)


def test_a_batch_with_padding_is_that_of_the_official_code(teacher):
    golden = np.load(FIXTURES / "batched_padding.npz")
    network, inside = teacher(mode="cell").network, ~golden["padding_mask"]
    assert inside.sum(1).tolist() == golden["lengths"].tolist() == [14, 4]
    values = torch.from_numpy(golden["values"][inside]).float()
    ids = torch.from_numpy(golden["ids"][inside]).long()
    made = network.encode(values, ids, Layout(torch.from_numpy(golden["lengths"]).long(), "cpu"))
    np.testing.assert_allclose(made, golden["encoder_out"][inside], **LIMIT)


@pytest.mark.parametrize("pool", ["all", "max"])
def test_batches_equal_single_cells_whatever_the_budget(teacher, pool):
    x, dice = cells().X[[1, 5] * 6].tolil(), np.random.default_rng(3)  # 8-10 and 340-400 genes
    for row in range(12):
        genes = np.array(x.rows[row])
        x[row, dice.choice(genes, int(len(genes) * dice.uniform(0, 0.15)), replace=False)] = 0
    given = anndata.AnnData(sparse.csr_matrix(x), var=cells().var)
    single = np.concatenate([teacher(pool=pool).embed(given[[i]].copy()) for i in range(12)])
    for tokens in (1, 1_300, 100_000):
        found = teacher(pool=pool, tokens=tokens).embed(given)
        np.testing.assert_allclose(found, single, rtol=1e-5, atol=5e-6)


def test_memory_is_bounded_by_the_budget_of_tokens():
    lengths = np.sort(np.random.default_rng(0).integers(3, 900, 500))[::-1]
    batches = scfoundation.budgeted(np.arange(500), lengths, 1_000)
    assert np.array_equal(np.concatenate(batches), np.arange(500))
    padded = [len(some) * lengths[some].max() for some in batches]
    assert max(padded) <= 1_000 and max(len(some) for some in batches) > 2
    assert all(lengths[some].min() >= 0.9 * lengths[some].max() for some in batches)
    long = scfoundation.budgeted(np.arange(3), np.array([2_000, 30, 30]), 1_000)
    assert [len(some) for some in long] == [1, 2]


def near_in_bfloat16(made: np.ndarray, exact: np.ndarray) -> None:
    """Vectors have cosine > 0.9999 with the exact ones; no value (up to 4) is off by over 0.08."""
    cosine = (made * exact).sum(1) / np.linalg.norm(made, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.9999 and np.abs(made - exact).max() < 0.08


def test_bfloat16_stays_near_float32(teacher):
    exact, half = teacher().embed(few()), teacher(precision="bfloat16").embed(few())
    assert half.dtype == np.float32 and np.abs(half - exact).max() > 1e-3
    near_in_bfloat16(half, exact)
    values, embed = torch.linspace(0.1, 9, 50), teacher().network.token_emb
    with torch.autocast("cpu", torch.bfloat16):
        rounded = embed(values)
    np.testing.assert_array_equal(rounded, embed(values))  # values themselves are not rounded


# ---- genes by name -------------------------------------------------------------------------------


def test_the_order_of_columns_and_their_number_do_not_matter(teacher, vocabulary):
    names = pd.read_csv(vocabulary, sep="\t", keep_default_na=False)["gene_name"]
    plain, model = teacher().embed(few()), teacher()
    given = few()[:, np.random.default_rng(1).permutation(7160)].copy()
    np.testing.assert_array_equal(model.embed(given), plain)
    absent = pd.DataFrame(index=names[~names.isin(GENES["gene"])])
    nothing = anndata.AnnData(sparse.csr_matrix((5, len(absent))), few().obs, absent)
    full = anndata.concat([few(), nothing], axis=1)
    np.testing.assert_array_equal(model.embed(full[:, ::-1].copy()), plain)
    given = few()  # case is exact: a name in small letters is no gene of the vocabulary
    given.var_names = [name.lower() if name == IN[0] else name for name in given.var_names]
    without = teacher().embed(few()[:, few().var_names != IN[0]].copy())
    np.testing.assert_array_equal(teacher().embed(given), without)


def test_duplicated_symbols_are_refused_where_they_matter(teacher):
    given, names = few(), few().var_names.to_numpy().copy()
    names[names == OUT[1]] = IN[0]
    given.var_names = names
    with pytest.raises(PekaError, match=IN[0]):
        teacher().embed(given)
    names[names == IN[0]] = OUT[0]  # twice outside of the vocabulary: of no interest
    given.var_names = names
    assert np.isfinite(teacher().embed(given)).all()


def test_counts_may_be_dense_uncanonical_or_hold_zeros(teacher):
    plain, given, x = teacher().embed(few()), few(), few().X
    given.X = given.X.toarray()
    np.testing.assert_array_equal(teacher().embed(given), plain)
    halves = [np.floor(x.data / 2), np.ceil(x.data / 2)]  # each entry twice, zeros among them
    twice = (np.stack(halves, 1).ravel(), np.repeat(x.indices, 2), 2 * x.indptr)
    given.X = sparse.csr_matrix(twice, x.shape)
    np.testing.assert_array_equal(teacher().embed(given), plain)


def test_values_that_cannot_be_right_are_refused(teacher):
    def changed(value=None, values="counts"):
        given = few(values)
        if value is not None:
            given.X.data[3] = value
        return given

    ensembl, no_total = few(), changed(values="lognorm")
    ensembl.var_names = [f"ENSG{i:011d}" for i in range(7160)]
    del no_total.obs["vocab_total"]
    for given, options, word in (
        (ensembl, {}, "ENSG00000000000"),
        (changed(-1.0), {}, "-1"),
        (changed(np.nan), {}, "nan"),
        (changed(0.5), {}, "'F'"),
        (changed(), {"pre_normalized": "T"}, "'T'"),
        (no_total, {"pre_normalized": "A"}, "vocab_total"),
        (changed(), {"target": "t102.5"}, "102.5"),
    ):
        with pytest.raises(PekaError, match=word):
            teacher(**options).embed(given)


def test_options_that_do_not_exist_are_refused(teacher):
    options = {"mode": "bulk", "pool": "mean", "target": "x4", "pre_normalized": True, "depth": 3}
    options |= {"precision": "float16", "checkpoint": "nowhere.ckpt"}
    for name, value in options.items():
        with pytest.raises(PekaError, match=name):
            teacher(**{name: value})


# ---- spots that cannot be embedded ---------------------------------------------------------------


@pytest.mark.parametrize("name", UPSTREAM_EDGES)
@pytest.mark.parametrize("target", ["t4", "f1"])
def test_what_stops_upstream_is_refused_and_what_does_not_is_embedded(teacher, name, target):
    model = teacher(mode="cell", target=target)
    if "exception" not in EDGES["official_get_embedding"][f"{name}|{target}"]:
        assert np.isfinite(model.embed(UPSTREAM_EDGES[name])).all()
        return
    with pytest.raises(PekaError, match="cell first"):
        model.embed(UPSTREAM_EDGES[name])
    # PEKA's code stops too where such a spot comes first; else it repeats the spot before
    peka = EDGES["peka"].get(f"{name}_first|{target}") or EDGES["peka"][f"{name}|{target}"]
    assert "exception" in peka


def mixed() -> anndata.AnnData:
    """Five cells with three unusable ones between them."""
    bad = [UPSTREAM_EDGES[name] for name in ("only_nonvocab", "all_zero", "total_1_one_gene")]
    parts = [cells(rows=[0, 1]), bad[0], cells(rows=[3]), *bad[1:], cells(rows=[4, 5])]
    for i, part in enumerate(parts):
        part.obs_names = [f"s{i}{letter}" for letter in "ab"[: part.n_obs]]
    return anndata.concat(parts, join="outer", fill_value=0)


GOOD = np.array([1, 1, 0, 1, 0, 0, 1, 1], bool)


def test_dropped_spots_have_no_vector_and_change_no_other(teacher):
    with pytest.raises(PekaError, match="s1a"):
        teacher().embed(mixed())
    model = teacher(unusable="drop")
    made, facts = model.embed(mixed()), model.facts(mixed())
    assert np.isnan(made[~GOOD]).all()
    np.testing.assert_allclose(made[GOOD], EXPECTED["gene|F|f1|all"][FEW], **LIMIT)
    assert facts["dropped"] == {"no expressed gene of the vocabulary": 2, "total of 1 or less": 1}
    assert facts["n_usable"] == 5 and facts["n_kept_by_min_genes"] == {"0": 5, "200": 3}
    spots = teacher(target="f0.5").examine(few())  # upstream mislabels it
    assert (spots["reason"] != "").tolist() == [name == "two_counts" for name in few().obs_names]


def test_quality_control_is_a_switch_and_each_choice_is_counted(teacher):
    model = teacher(unusable="drop", min_genes=200)
    assert np.flatnonzero(np.isfinite(model.embed(mixed())).all(1)).tolist() == [0, 3, 7]
    facts = model.facts(mixed())
    assert facts["dropped"]["fewer than 200 expressed genes of the vocabulary"] == 2
    assert facts["n_kept_by_min_genes"] == {"0": 5, "200": 3} and facts["n_usable"] == 3
    for least, usable in ((400, True), (401, False)):
        spot = teacher(min_genes=least).examine(few()).loc["mostly_nonvocab"]
        assert spot["genes"] == 400 and (spot["reason"] == "") == usable


def test_spots_get_labels_and_facts_that_survive_the_h5ad(teacher, tmp_path):
    train = np.arange(8) < 7
    for labels in ("kmeans", "leiden"):
        made = embed_spots(mixed(), train, teacher(unusable="drop"), k=4, labels=labels)
        assert (np.isfinite(made.obsm["X_teacher"]).all(1) == GOOD).all()
        assert (made.obs["teacher_usable"] == GOOD).all()
        assert ((made.obs["pseudo_label"] >= 0) == GOOD).all()
    made.write_h5ad(tmp_path / "teacher.h5ad")
    facts = anndata.read_h5ad(tmp_path / "teacher.h5ad").uns["teacher"]
    found = [facts[name] for name in ("name", "mode", "target", "n_components", "n_train")]
    assert found == ["scfoundation", "gene", "f1", 64, 4]
    assert facts["checkpoint_sha256"] == sha256(CHECKPOINT) and "non-commercial" in facts["license"]
    with pytest.raises(PekaError, match="scfoundation"):
        embed_spots(mixed(), ~GOOD, teacher(unusable="drop"))


# ---- weights -------------------------------------------------------------------------------------


def test_weights_that_do_not_fit_are_refused(teacher, vocabulary, tmp_path):
    weights = torch.load(CHECKPOINT, weights_only=True)
    state, config = weights["gene"]["state_dict"], weights["gene"]["config"]
    extra = "encoder.transformer_encoder.2.linear1.bias"
    without = {key: value for key, value in state.items() if key != "model.encoder.norm.bias"}
    inner = config["model_config"]["mae_autobin"]
    kind = inner | {"encoder": inner["encoder"] | {"module_type": "performer"}}
    performer = config | {"model_config": {"mae_autobin": kind}}
    for other, changed, word in (
        (config, without, "encoder.norm.bias"),
        (config, state | {f"model.{extra}": torch.zeros(64)}, extra),
        (config, state | {"model.pos_emb.weight": torch.zeros(9, 16)}, "pos_emb.weight"),
        (performer, state, "performer"),
    ):
        with pytest.raises(PekaError, match=f"my file.*{word}"):
            build_network({"config": other, "state_dict": changed}, "my file")
    torch.save({"cell": weights["cell"]}, tmp_path / "one.ckpt")
    torch.save({"gene": Path("x")}, tmp_path / "code.ckpt")
    for name in ("one.ckpt", "code.ckpt"):
        with pytest.raises(PekaError, match=name):
            read_checkpoint(tmp_path / name, "gene")


@pytest.mark.parametrize(
    "content", [b"", b"<html>log in</html>", b"\xff\xfeg\x00e\x00", "short", "turned"]
)
def test_a_vocabulary_that_is_none_is_named(teacher, vocabulary, tmp_path, content):
    path, table = tmp_path / "own.tsv", pd.read_csv(vocabulary, sep="\t")[:19_000]
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        table[:: 1 if content == "short" else -1].to_csv(path, sep="\t", index=False)
    with pytest.raises(PekaError, match=r"own\.tsv"):
        teacher(vocabulary=path).embed(few())


def test_an_older_file_that_cannot_be_mapped_loads_too(teacher, tmp_path):
    weights, old = torch.load(CHECKPOINT, weights_only=True), tmp_path / "old.ckpt"
    torch.save(weights, old, _use_new_zipfile_serialization=False)
    np.testing.assert_array_equal(teacher(checkpoint=old).embed(few()), teacher().embed(few()))


@pytest.mark.parametrize("mode", ["cell", "gene", "rde"])
def test_the_real_layout_of_keys_builds_our_network(shared, mode):
    folder = shared / "fixtures/scfoundation"
    config = json.loads((folder / "real_config.json").read_text())
    config = config["config_as_printed_by_official_loader"]
    layout = json.loads((folder / "real_state_dict_keys.json").read_text())
    state = {
        key: torch.empty(shape, dtype=getattr(torch, kind), device="meta")
        for key, (shape, kind) in layout["keys"].items()
    }
    parts = {"model": "mae_autobin", "model_config": {"mae_autobin": config}}
    parts["dataset_config"] = {"rnaseq": {}}
    network = build_network({"config": parts, "state_dict": state}, mode)

    values = lambda chosen: sum(v.numel() for key, v in state.items() if chosen(key))
    decoder = ("decoder", "decoder_embed", "norm", "to_final")
    dropped = values(lambda key: key.split(".")[1] in decoder) + 2 * 768  # emb_mask and emb_pad
    buffers = values(lambda key: "projection_matrix" in key or "calls_since" in key)
    total = values(lambda key: True)
    assert sum(value.numel() for value in network.state_dict().values()) == total - dropped
    assert total - buffers == layout["n_parameters"] == 119_252_285
    assert network.encoder.transformer_encoder[0].self_attn.heads == 12
    assert network.token_emb.alpha == 1.0


def test_the_real_vocabulary_has_the_drawn_genes_at_their_places(shared, teacher):
    model = teacher(vocabulary=shared / "data/scfoundation/OS_scRNA_gene_index.19264.tsv")
    np.testing.assert_array_equal(model.symbols.get_indexer(GENES["gene"]), GENES["vocab_index"])
    np.testing.assert_allclose(model.embed(few()), EXPECTED["gene|F|f1|all"][FEW], **LIMIT)


def test_real_weights_give_the_values_that_the_authors_printed(shared):
    """Runs where the 1.4 GB are: in PEKA_MIRROR, or in the cache of downloads."""
    home = Path(os.environ.get("PEKA_MIRROR") or folders.cache_folder())
    if not (path := home / scfoundation.FILES["checkpoint"]).exists():
        pytest.skip(f"needs scFoundation's weights (1.4 GB, non-commercial) at {path}")
    folder = shared / "fixtures/scfoundation"
    golden = json.loads((folder / "real_weights_reference.json").read_text())
    inputs = np.load(folder / "real_weights_baron_inputs.npz")
    real = folder / "OS_scRNA_gene_index.19264.tsv"
    model = load_teacher("scfoundation", vocabulary=real, mode="rde", target="a5")
    parts = (inputs["counts"].astype(np.float32), inputs["indices"].astype(int), inputs["indptr"])
    x = sparse.csr_matrix(parts, inputs["shape"])
    made = model.embed(anndata.AnnData(x, var=pd.DataFrame(index=model.symbols)))
    limit = golden["suggested_atol"]
    np.testing.assert_allclose(made[:, golden["dims"]], golden["authors_original"], atol=limit)


# ---- files, names, imports -----------------------------------------------------------------------


@pytest.fixture(params=FILES)
def vocabulary_mirror(request, vocabulary, tmp_path, monkeypatch) -> Path:
    """A mirror with a vocabulary, scFoundation's own or the drawn one, and without weights."""
    monkeypatch.setenv("PEKA_CACHE", str(tmp_path / "cache"))
    mirror = SHARED / "data"
    if request.param != "original":
        mirror, listed = tmp_path / "mirror", copy.deepcopy(manifest.load_manifest())
        path = mirror / scfoundation.FILES["vocabulary"]
        path.parent.mkdir(parents=True)
        path.write_bytes(vocabulary.read_bytes())
        entry = {"size": path.stat().st_size, "sha256": sha256(path)}
        listed["sources"]["scfoundation"]["files"][scfoundation.FILES["vocabulary"]] = entry
        monkeypatch.setattr(manifest, "load_manifest", lambda: listed)
    monkeypatch.setenv("PEKA_MIRROR", str(mirror))
    return mirror


def test_the_vocabulary_comes_from_a_mirror_and_absent_weights_are_named(vocabulary_mirror):
    model = load_teacher("scfoundation")
    assert len(model.symbols) == N_GENES
    if not (vocabulary_mirror / scfoundation.FILES["checkpoint"]).exists():
        with pytest.raises(PekaError, match=r"(?s)models\.ckpt.*model/README\.md"):
            model.embed(few())


def test_units_are_named_by_weights_and_settings_and_not_by_places(vocabulary, tmp_path):
    def name(**options):
        options = {"vocabulary": str(vocabulary)} | options
        return json.dumps(scfoundation.ScFoundation.named_options(options), sort_keys=True)

    moved = tmp_path / "moved.ckpt"
    moved.write_bytes(CHECKPOINT.read_bytes())
    tiny = name(checkpoint=str(CHECKPOINT))
    assert tiny == name(checkpoint=str(moved), tokens=99, device="cpu")
    assert sha256(CHECKPOINT) in tiny and str(FIXTURES) not in tiny
    assert str(vocabulary.parent) not in tiny and "9f40bf32" in name()
    assert len({tiny, name(), name(checkpoint=str(CHECKPOINT), target="t4")}) == 3
    moved.write_bytes(CHECKPOINT.read_bytes() + b"x")
    assert name(checkpoint=str(moved)) != tiny
    with pytest.raises(PekaError, match=r"gone\.ckpt"):
        name(checkpoint=str(tmp_path / "gone.ckpt"))


def test_the_pca_teacher_needs_no_torch():
    code = "import sys; from peka_core import load_teacher; load_teacher('pca')"
    code += "; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
