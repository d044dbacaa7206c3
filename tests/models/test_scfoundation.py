"""scFoundation against golden outputs of the official code on drawn cells and weights."""

import json
import os
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from peka_core.common import folders
from peka_core.common.errors import PekaError
from peka_core.common.files import sha256
from peka_core.models import scfoundation
from peka_core.models.scfoundation_network import Layout, build_network
from peka_core.teachers import embed_spots, load_teacher

FIXTURES = Path(__file__).parents[1] / "fixtures" / "scfoundation"
CHECKPOINT = FIXTURES / "scfoundation_tiny.ckpt"
SPEC = json.loads((FIXTURES / "spec.json").read_text())
EDGES = json.loads((FIXTURES / "edge_cases.json").read_text())
LIMIT = {"rtol": SPEC["tolerance"]["rtol"], "atol": SPEC["tolerance"]["atol"]}
INPUTS, EXPECTED = np.load(FIXTURES / "inputs.npz"), np.load(FIXTURES / "expected.npz")
GENES = pd.read_csv(FIXTURES / "input_genes.tsv", sep="\t", keep_default_na=False)
CELLS = [cell["name"] for cell in SPEC["cells"]]
IN = GENES["gene"][GENES["vocab_index"] >= 0].tolist()
OUT = GENES["gene"][GENES["vocab_index"] < 0].tolist()
N_GENES = 19_264
FEW = [0, 1, 3, 4, 5]  # without the dense cell, whose attention takes most of the time


def counts_of(file) -> sparse.csr_matrix:
    parts = (file["counts"].astype(np.float32), file["indices"].astype(int), file["indptr"])
    return sparse.csr_matrix(parts, file["shape"])


def cells(values="counts", rows=slice(None)) -> anndata.AnnData:
    """The six drawn cells, raw (`counts`) or normalised (`lognorm`)."""
    x = counts_of({name: INPUTS[name] for name in INPUTS} | {"counts": INPUTS[values]})
    obs = pd.DataFrame({"vocab_total": INPUTS["vocab_total"]}, index=CELLS)
    return anndata.AnnData(x, obs=obs, var=pd.DataFrame(index=GENES["gene"]))[rows].copy()


@pytest.fixture
def few() -> anndata.AnnData:
    return cells(rows=FEW)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Path:
    """A vocabulary with the drawn genes at their true places, and made-up names elsewhere."""
    names = np.array([f"unnamed_{i}" for i in range(N_GENES)], dtype=object)
    known = GENES[GENES["vocab_index"] >= 0]
    names[known["vocab_index"]] = known["gene"]
    path = tmp_path_factory.mktemp("vocabulary") / "genes.tsv"
    pd.DataFrame({"gene_name": names, "index": range(N_GENES)}).to_csv(path, sep="\t", index=False)
    return path


@pytest.fixture(scope="session")
def teacher(vocabulary):
    """Makes a teacher with the tiny weights."""
    own = {"checkpoint": CHECKPOINT, "vocabulary": vocabulary, "device": "cpu"}
    return lambda **options: load_teacher("scfoundation", **own | options)


@pytest.fixture(scope="session")
def plain(teacher) -> np.ndarray:
    """Embeddings of the few cells with the defaults."""
    return teacher().embed(cells(rows=FEW))


def one_cell(counts: dict[str, float]) -> anndata.AnnData:
    """A cell with these counts, among 300 genes that it does not express."""
    genes = list(counts) + [gene for gene in GENES["gene"][:300] if gene not in counts]
    x = sparse.csr_matrix(np.array([[counts.get(gene, 0) for gene in genes]], np.float32))
    return anndata.AnnData(x, obs=pd.DataFrame(index=["cell"]), var=pd.DataFrame(index=genes))


EDGE_CELLS = {  # as in edge_cases.json
    "all_zero": one_cell({}),
    "only_nonvocab": one_cell({OUT[0]: 5, OUT[1]: 2}),
    "total_1_one_gene": one_cell({IN[7]: 1}),
    "total_2_one_gene": one_cell({IN[7]: 2}),
}


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
    stages = {"token_emb": network.token_emb, "after_final_norm": network.encoder.norm}
    layers = enumerate(network.encoder.transformer_encoder)
    for name, module in (stages | {f"after_layer{i}": layer for i, layer in layers}).items():
        module.register_forward_hook(lambda _, given, out, name=name: found.update({name: out}))
    keep = lambda _, given: found.update(encoder_input=given[0])
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


def near_in_bfloat16(made: np.ndarray, exact: np.ndarray) -> None:
    """Vectors have cosine > 0.9999 with the exact ones; no value (up to 4) is off by over 0.08."""
    cosine = (made * exact).sum(1) / np.linalg.norm(made, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosine.min() > 0.9999 and np.abs(made - exact).max() < 0.08


def test_bfloat16_stays_near_float32(teacher, few, plain):
    half = teacher(precision="bfloat16").embed(few)
    assert half.dtype == np.float32 and np.abs(half - plain).max() > 1e-3
    near_in_bfloat16(half, plain)
    values, embed = torch.linspace(0.1, 9, 50), teacher().network.token_emb
    with torch.autocast("cpu", torch.bfloat16):
        rounded = embed(values)
    np.testing.assert_array_equal(rounded, embed(values))  # values themselves are not rounded


def test_the_order_of_genes_and_the_form_of_counts_do_not_matter(teacher, few, plain, vocabulary):
    names = pd.read_csv(vocabulary, sep="\t", keep_default_na=False)["gene_name"]
    absent = pd.DataFrame(index=names[~names.isin(GENES["gene"])])
    nothing = anndata.AnnData(sparse.csr_matrix((5, len(absent))), few.obs, absent)
    full = anndata.concat([few, nothing], axis=1)[:, ::-1].copy()
    permuted = few[:, np.random.default_rng(1).permutation(few.n_vars)].copy()
    x, i = few.X.data, few.X.indices  # each entry in two parts, then a zero in the next column
    parts = np.stack([np.floor(x / 2), np.ceil(x / 2), 0 * x], 1).ravel()
    twice = (parts, np.stack([i, i, (i + 1) % few.n_vars], 1).ravel(), 3 * few.X.indptr)
    forms = [few.X.toarray(), sparse.csr_matrix(twice, few.shape)]
    for given in (full, permuted, *(anndata.AnnData(x, few.obs, few.var) for x in forms)):
        np.testing.assert_array_equal(teacher().embed(given), plain)


def test_a_gene_is_found_by_its_exact_name_and_must_come_once(teacher, few, plain):
    def renamed(old, new):
        names = [new if name == old else name for name in few.var_names]
        return anndata.AnnData(few.X, few.obs, pd.DataFrame(index=names))

    without = teacher().embed(few[:, few.var_names != IN[0]].copy())
    np.testing.assert_array_equal(teacher().embed(renamed(IN[0], IN[0].lower())), without)
    np.testing.assert_array_equal(teacher().embed(renamed(OUT[1], OUT[0])), plain)
    with pytest.raises(PekaError, match=IN[0]):
        teacher().embed(renamed(OUT[1], IN[0]))
    few.var_names = [f"ENSG{i:011d}" for i in range(few.n_vars)]
    with pytest.raises(PekaError, match="ENSG00000000000"):
        teacher().embed(few)


def test_values_that_cannot_be_right_are_refused(teacher, few):
    for value, options, word in (
        (-1.0, {}, "-1"),
        (np.nan, {}, "nan"),
        (0.5, {}, "'F'"),
        (1.0, {"pre_normalized": "T"}, "'T'"),
        (1.0, {"target": "t102.5"}, "102.5"),
    ):
        few.X.data[3] = value
        with pytest.raises(PekaError, match=word):
            teacher(**options).embed(few)
    few.X = few.X.log1p()
    del few.obs["vocab_total"]
    with pytest.raises(PekaError, match="vocab_total"):
        teacher(pre_normalized="A").embed(few)


@pytest.mark.parametrize("name", EDGE_CELLS)
def test_what_stops_upstream_is_refused_and_what_does_not_is_embedded(teacher, name):
    model = teacher(mode="cell", target="t4")
    if "exception" in EDGES["official_get_embedding"][f"{name}|t4"]:
        with pytest.raises(PekaError, match="cell first"):
            model.embed(EDGE_CELLS[name])
    else:
        assert np.isfinite(model.embed(EDGE_CELLS[name])).all()


@pytest.fixture(scope="session")
def mixed() -> anndata.AnnData:
    """Five cells with three unusable ones between them."""
    bad = [EDGE_CELLS[name] for name in ("only_nonvocab", "all_zero", "total_1_one_gene")]
    parts = [cells(rows=[0, 1]), bad[0], cells(rows=[3]), *bad[1:], cells(rows=[4, 5])]
    made = anndata.concat(parts, join="outer", fill_value=0)
    made.obs_names = [f"s{i}" for i in range(8)]
    return made


GOOD = np.array([1, 1, 0, 1, 0, 0, 1, 1], bool)


def test_dropped_spots_have_no_vector_change_no_other_and_are_counted(teacher, mixed, few):
    with pytest.raises(PekaError, match="s2"):
        teacher().embed(mixed)
    model = teacher(unusable="drop")
    made, facts = model.embed(mixed), model.facts(mixed)
    assert np.isnan(made[~GOOD]).all()
    np.testing.assert_allclose(made[GOOD], EXPECTED["gene|F|f1|all"][FEW], **LIMIT)
    reasons = {"no expressed gene of the vocabulary": 2, "total of 1 or less": 1}
    assert facts["dropped"] == reasons and facts["n_usable"] == 5
    assert facts["checkpoint_sha256"] == sha256(CHECKPOINT) and "non-commercial" in facts["license"]
    spots = teacher(target="f0.5").examine(few)  # upstream mislabels it
    assert (spots["reason"] != "").tolist() == [name == "two_counts" for name in few.obs_names]
    with pytest.raises(PekaError, match="scfoundation"):
        embed_spots(mixed, ~GOOD, model)  # no training spot is usable

    strict = teacher(unusable="drop", min_genes=200)
    assert np.flatnonzero(np.isfinite(strict.embed(mixed)).all(1)).tolist() == [0, 3, 7]
    facts, reason = strict.facts(mixed), "fewer than 200 expressed genes of the vocabulary"
    assert facts["dropped"] == reasons | {reason: 2} and facts["n_usable"] == 3
    assert facts["n_kept_by_min_genes"] == {"0": 5, "200": 3}
    for least, usable in ((400, True), (401, False)):
        spot = teacher(min_genes=least).examine(few).loc["mostly_nonvocab"]
        assert spot["genes"] == 400 and (spot["reason"] == "") == usable


def test_weights_of_another_depth_are_refused():
    weights, extra = torch.load(CHECKPOINT, weights_only=True)["gene"], "2.linear1.bias"
    weights["state_dict"][f"model.encoder.transformer_encoder.{extra}"] = torch.zeros(64)
    with pytest.raises(PekaError, match=f"my file.*{extra}"):
        build_network(weights, "my file")


def test_a_vocabulary_in_another_order_is_refused(teacher, vocabulary, tmp_path, few):
    table, path = pd.read_csv(vocabulary, sep="\t"), tmp_path / "own.tsv"
    table[::-1].to_csv(path, sep="\t", index=False)
    with pytest.raises(PekaError, match=r"own\.tsv"):
        teacher(vocabulary=path).embed(few)


def test_the_real_layout_of_keys_builds_our_network(shared):
    folder = shared / "fixtures/scfoundation"
    config = json.loads((folder / "real_config.json").read_text())
    config = {"mae_autobin": config["config_as_printed_by_official_loader"]}
    keys = json.loads((folder / "real_state_dict_keys.json").read_text())["keys"]
    empty = lambda shape, kind: torch.empty(shape, dtype=getattr(torch, kind), device="meta")
    state = {key: empty(*facts) for key, facts in keys.items()}
    parts = {"model": "mae_autobin", "model_config": config, "dataset_config": {"rnaseq": {}}}
    network = build_network({"config": parts, "state_dict": state}, "")  # every key fits
    assert network.encoder.transformer_encoder[0].self_attn.heads == 12
    assert network.token_emb.alpha == 1.0


def test_real_weights_give_the_values_that_the_authors_printed(shared):
    """Runs where the 1.4 GB are: in PEKA_MIRROR, or in the cache of downloads."""
    home = Path(os.environ.get("PEKA_MIRROR") or folders.cache_folder())
    if not (path := home / scfoundation.FILES["checkpoint"]).exists():
        pytest.skip(f"needs scFoundation's weights (1.4 GB, non-commercial) at {path}")
    folder = shared / "fixtures/scfoundation"
    golden = json.loads((folder / "real_weights_reference.json").read_text())
    real = folder / "OS_scRNA_gene_index.19264.tsv"
    model = load_teacher("scfoundation", vocabulary=real, mode="rde", target="a5")
    x = counts_of(np.load(folder / "real_weights_baron_inputs.npz"))
    made = model.embed(anndata.AnnData(x, var=pd.DataFrame(index=model.symbols)))
    limit = golden["suggested_atol"]
    np.testing.assert_allclose(made[:, golden["dims"]], golden["authors_original"], atol=limit)


def test_the_real_vocabulary_comes_from_a_mirror(shared, monkeypatch):
    monkeypatch.setenv("PEKA_MIRROR", str(shared / "data"))
    found = load_teacher("scfoundation").symbols.get_indexer(GENES["gene"])
    np.testing.assert_array_equal(found, GENES["vocab_index"])
