"""scGPT against golden outputs of the official code on drawn cells and weights."""

import functools
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from peka_core.common.errors import PekaError
from peka_core.common.files import sha256
from peka_core.models.scgpt import FILES
from peka_core.models.scgpt_network import build_network
from peka_core.teachers import TEACHERS, load_teacher

FIXTURES = Path(__file__).parents[1] / "fixtures" / "scgpt"
OWN = {option: FIXTURES / Path(file).name for option, file in FILES.pinned.items()}
load = lambda name: json.loads((FIXTURES / name).read_text())
arrays = lambda name: np.load(FIXTURES / f"{name}.npz")
SPEC, ARGS, VOCAB = map(load, ["spec.json", "args.json", "vocab.json"])
INPUTS, EXPECTED, TOKENS, DRAWS = map(arrays, ("inputs", "expected", "tokens", "draws"))
GENES = (FIXTURES / "input_genes.txt").read_text().split()
CELLS = [cell["name"] for cell in SPEC["cells"]]
LIMIT, LOOSE = SPEC["tolerance"]["emb_*"], SPEC["tolerance"]["emb_det_raw, intermediates"]
DENSE, REAL_VALUED, FEW = 2, 7, [0, 1, 6]  # the cell of which genes are left out; no whole numbers
near = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-6)
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*names are not unique", "ignore:Changing the spars"
)


teacher = functools.partial(load_teacher, "scgpt", **OWN, device="cpu", pre_normalized="T")
official = functools.partial(teacher, ties="middle", sampling="first")  # as the arrays *_det


def cells(values="counts", rows=slice(None)) -> anndata.AnnData:
    """The nine drawn cells, raw (`counts`) or normalised (`lognorm`)."""
    x = sparse.csr_matrix((INPUTS[values], INPUTS["indices"].astype(int), INPUTS["indptr"]))
    x.resize(INPUTS["shape"])
    return anndata.AnnData(x, pd.DataFrame(index=CELLS), pd.DataFrame(index=GENES))[rows].copy()


plain = functools.cache(lambda: teacher().embed(cells()))


def drawn(row: int):
    """A teacher with the random numbers that were recorded for one cell."""
    model, at = teacher(sampling="drawn" if row == DENSE else "first"), DRAWS["u_len"].cumsum()
    x, ids = model._known(cells(rows=[row]))
    model.chance = np.zeros(len(model.symbols)), np.full(len(model.symbols), np.nan)
    model.chance[1][ids[x.indices]] = DRAWS["u"][at[row] - DRAWS["u_len"][row] : at[row]]
    if row == DENSE:
        model.chance[0][ids[x.indices][DRAWS["perm_dense"]]] = np.arange(len(x.indices))
    return model


RULES = {  # array -> its genes, its bins, and our options
    "emb_det": ("gene_det", "value_det", {}), "emb_draw": ("gene_draw", "value_draw", {}),
    "emb_det_raw": ("gene_det", "value_det", {"norm": "none"}),
    "emb_det_len300": ("gene_det_len300", "value_det_len300", {"max_length": 300}),
    "emb_det_lognorm": ("gene_det", "value_det_lognorm", {}),
}  # fmt: skip


@pytest.mark.parametrize("key", list(RULES))
def test_tokens_and_embeddings_are_those_of_the_official_code(key):
    genes, bins, options = RULES[key]
    assert set(EXPECTED) == set(RULES)
    for row in range(9):
        adata = cells("lognorm" if "lognorm" in key else "counts", [row])
        model = drawn(row) if key == "emb_draw" else official(**options)
        made_bins, made, (n,) = model.tokenise(*model._known(adata))
        np.testing.assert_array_equal(made, TOKENS[genes][row][:n])
        np.testing.assert_array_equal(made_bins, TOKENS[bins][row][:n])
        assert (TOKENS[genes][row][n:] == VOCAB[ARGS["pad_token"]]).all()
        embedded, limit = model.embed(adata)[0], LOOSE if "raw" in key else LIMIT
        np.testing.assert_allclose(embedded, EXPECTED[key][row], **limit)


def test_every_step_inside_is_that_of_the_official_code():
    golden, seen, model = arrays("intermediates"), {}, official()
    network, inputs = model.network, model.tokenise(*model._known(cells(rows=[1])))
    layers, inputs = network.transformer_encoder["layers"], [*map(torch.from_numpy, inputs)]
    parts = {f"layer{i}_out": layer for i, layer in enumerate(layers)}
    parts |= {"gene_embedding": network.encoder.embedding, "gene_encoded": network.encoder}
    parts |= {"value_encoded": network.value_encoder, "layer0_attn": layers[0].self_attn}
    for name, part in parts.items():
        part.register_forward_hook(lambda _, given, out, name=name: seen.update({name: out}))
    layers[0].register_forward_pre_hook(lambda _, given: seen.update(embedded_sum=given[0]))
    seen |= {"cell_embedding": network(*inputs)[0], "cls_raw": network(*inputs, False)[0]}
    seen |= {"values": inputs[0], "token_ids": inputs[1]}
    for name in golden:
        np.testing.assert_allclose(seen[name], golden[name], **LOOSE, err_msg=name)


def test_an_embedding_is_deterministic_and_depends_on_no_order_batch_or_other_spot():
    turned = cells()[::-1, np.random.default_rng(1).permutation(len(GENES))].copy()
    near(teacher(tokens=1_500).embed(turned)[::-1], plain())
    model = teacher()  # all cells in one batch with padding
    near(model.network(*map(torch.from_numpy, model.tokenise(*model._known(cells())))), plain())
    moved = lambda made: np.flatnonzero(np.abs(made - plain()).max(1) > 1e-3).tolist()
    assert moved(teacher(draw_seed=1).embed(cells())) == [DENSE]  # ties are not drawn
    assert REAL_VALUED not in (found := moved(teacher(ties="drawn").embed(cells()))) and found
    assert moved(teacher(max_length=2_000).embed(cells())) == [DENSE]
    half = teacher(precision="bfloat16").embed(cells())
    cosine = (half * plain()).sum(1) / np.linalg.norm(half, axis=1)
    assert half.dtype == np.float32 and 0.999 < cosine.min() < 0.9999999


def entry(value, kind="float32"):
    """Another value for the first count of the first cell, and another type for all."""
    first = np.arange(3 * len(GENES)).reshape(3, -1) == 1
    return lambda x, names: (np.where(first, value, x).astype(kind), names)


rename = lambda new: lambda x, names: (x, [new(i, name) for i, name in enumerate(names)])
EDGES = [
    (lambda x, names: (x * [[0], [1], [1]], names), "typical"),  # an empty spot stops upstream
    (rename(lambda i, name: f"ENSG{i:011d}"), "ENSG0"), (rename(lambda i, name: "por"), "por"),
    (rename(lambda i, name: name.replace(GENES[6], "POR")), "POR"),  # upstream: two tokens
    (entry(-1), "-1"), (entry(np.nan), "nan"), (entry(np.inf), "inf"),  # upstream: some bin
    (entry(0.5), "'T'"), (lambda x, names: (np.log1p(x), names), "'T'"),
    *((entry(3, kind), None) for kind in ("uint8", "uint32", "int16", "float64")),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), EDGES)
def test_edge_cases_are_refused_or_embedded(change, words):
    x, names = change(cells(rows=FEW).X.toarray(), GENES)
    given = anndata.AnnData(sparse.csr_matrix(x), var=pd.DataFrame(index=names))
    given.obs_names, model = [CELLS[row] for row in FEW], teacher(pre_normalized="F")
    if not words:  # the same in a dense matrix, with zeros
        dense = anndata.AnnData(x.astype(np.float32), given.obs, given.var)
        return np.testing.assert_array_equal(model.embed(given), model.embed(dense))
    with pytest.raises(PekaError, match=words):
        model.embed(given)


def test_dropped_spots_have_no_vector_and_are_counted():
    given, model = cells(), teacher(unusable="drop", min_genes=30)
    given.X[1] = 0
    made, facts = model.embed(given), model.facts(given)
    bad = np.isin(CELLS, ["sparse_40", "one_gene", "mostly_nonvocab"])
    near(made, np.where(bad[:, None], np.nan, plain()))
    assert sorted(facts["dropped"].values()) == [1, 2] and facts["n_usable"] == 6
    assert facts["n_of_which_genes_were_left_out"] == 1 and facts["ties"] == "middle"
    assert facts["checkpoint_sha256"] == sha256(OWN["checkpoint"]) and "MIT" in facts["license"]


SPECIAL = sorted(VOCAB, key=VOCAB.get)[-3:]
FILES_OF_OTHERS = [
    ("args", ARGS | {"nlayers": 2}, "unknown 12"), ("args", ARGS | {"d_hid": 32}, "shape 9"),
    ("args", ARGS | {"nheads": 5}, "own"), ("args", ARGS | {"n_bins": 50}, "own"),
    ("vocabulary", VOCAB | {"one_more": 1500}, "1501"), ("vocabulary", "<html>", "own"),
    ("vocabulary", {k: v + (v > 99) for k, v in VOCAB.items()}, "own"),  # a gap
    ("checkpoint", lambda k: ".layers.1." not in k, "missing 12"),
]  # fmt: skip


@pytest.mark.parametrize(("option", "made", "words"), FILES_OF_OTHERS)
def test_files_that_do_not_fit_together_are_refused(option, made, words, tmp_path):
    path = tmp_path / "own"
    if option == "checkpoint":
        state = torch.load(OWN[option], weights_only=True)
        torch.save({k: v for k, v in state.items() if made(k)}, path)
    else:
        path.write_text(made if isinstance(made, str) else json.dumps(made))
    with pytest.raises(PekaError, match=words):
        teacher(**{option: path}).embed(cells(rows=FEW))


def test_the_real_list_of_keys_builds_our_network():
    facts, keys = load("facts.json"), load("checkpoint_keys.json")
    dims, sizes = facts["dims"], facts["parameters"]
    real = {32: dims["embsize"], 48: dims["d_hid"], 1500: dims["ntoken"], 96: 3 * dims["embsize"]}
    for key in [key for key in keys if ".layers.0." in key]:
        keys |= {key.replace(".0.", f".{i}.", 1): keys[key] for i in range(dims["nlayers"])}
    empty = lambda shape: torch.empty([real.get(n, n) for n in shape], device="meta")
    state = {key: empty(shape) for key, shape in keys.items()}
    found = len(state), sum(v.numel() for v in state.values())
    assert found == (facts["tensors_in_file"]["count"], sizes["in_file"])
    network = build_network(state, dims, "")  # every key fits
    assert sum(p.numel() for p in network.parameters()) == sizes["used_for_embedding"]
    assert network.transformer_encoder["layers"][11].self_attn.heads == dims["nheads"]
    assert TEACHERS["scgpt"].dim({}) == dims["embsize"]


def test_files_that_are_not_here_are_named_with_their_licence(tmp_path, monkeypatch):
    monkeypatch.setenv("PEKA_MIRROR", str(tmp_path))
    with pytest.raises(PekaError, match=r"(?s)PEKA_MIRROR.*best_model\.pt.*no licence is stated"):
        teacher(checkpoint=None).embed(cells(rows=FEW))
    with pytest.raises(PekaError, match="nowhere"):
        teacher(args=tmp_path / "nowhere")
    short = tmp_path / "short"
    short.write_text(json.dumps({gene: VOCAB[gene] for gene in set(VOCAB) - set(SPECIAL)}))
    assert teacher(vocabulary=short).symbols.equals(teacher().symbols)  # special ones are appended
