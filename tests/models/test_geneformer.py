"""Geneformer against golden outputs of the official code on drawn cells and weights."""

import json
import pickle
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from peka_core.common.errors import PekaError
from peka_core.models import geneformer
from peka_core.models.geneformer_network import build_network
from peka_core.teachers import load_teacher

FIXTURES = Path(__file__).parents[1] / "fixtures" / "geneformer"
read = lambda name: json.loads((FIXTURES / name).read_text())
SPEC, EDGES, FACTS = read("spec.json"), read("edge_cases.json")["official"], read("facts.json")
LIMIT = {name: SPEC["tolerance"]["expected, intermediates"][name] for name in ("atol", "rtol")}
INPUTS, EXPECTED, TOKENS, STEPS = (
    np.load(FIXTURES / f"{name}.npz") for name in ("inputs", "expected", "tokens", "intermediates")
)
COLUMNS = STEPS["columns"]  # of the genes of the vocabulary that cell 1 expresses
CELLS = [cell["name"] for cell in SPEC["cells"]]


def cells(rows=slice(None), collapse=False) -> anndata.AnnData:
    """The eight drawn cells; `collapse` adds old ids of genes that are there with the new one."""
    parts = INPUTS["counts"], INPUTS["indices"].astype(int), INPUTS["indptr"]
    x = sparse.csr_matrix(parts, INPUTS["shape"])
    names = (FIXTURES / "input_genes.txt").read_text().split()
    if collapse:
        x = sparse.hstack([x, np.load(FIXTURES / "inputs_collapse_extra.npz")["counts"]], "csr")
        names += (FIXTURES / "input_genes_collapse_extra.txt").read_text().split()
    var, obs = pd.DataFrame({"gene_ids": names}), pd.DataFrame(index=CELLS)
    var.index = [f"symbol {i}" for i in range(len(names))]
    return anndata.AnnData(x, obs, var)[rows].copy()


def files_of(series: str) -> dict:
    """The options that name the five small files of `V1` or `V2`."""
    v = series.lower()
    files = {"checkpoint": f"{v}/model.safetensors", "config": f"{v}/config.json"}
    files |= {"token_dictionary": f"token_{v}.json", "gene_medians": f"median_{v}.json"}
    return {o: FIXTURES / f for o, f in (files | {"gene_mapping": f"mapping_{v}.json"}).items()}


def teacher(series="V2", **options):
    own = files_of(series) | {"gene_ids": "gene_ids", "device": "cpu"}
    return load_teacher("geneformer", **own | options)


@pytest.mark.parametrize("key", list(SPEC["arrays"]["expected.npz"]))
def test_tokens_and_embeddings_are_those_of_the_official_code(key):
    series, mode, layer, *collapse = key.split("|")
    model, given = teacher(series, emb_mode=mode, emb_layer=int(layer)), cells(collapse=collapse)
    ids, lengths = model.tokenise(given)
    name = "_".join([series, *collapse])
    np.testing.assert_array_equal(ids, TOKENS[f"ids_{name}"])
    np.testing.assert_array_equal(lengths, TOKENS[f"len_{name}"])
    made = model.fit(None).embed(given)
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, EXPECTED[key], **LIMIT)
    if mode == ("cls" if series == "V2" else "cell"):
        np.testing.assert_array_equal(teacher(series, emb_layer=int(layer)).embed(given), made)


def test_every_step_is_that_of_the_official_code():
    model, seen, given = teacher(), {}, cells([1])
    of, (ids, lengths) = model.columns(given)[COLUMNS], model.tokenise(given)
    scaled = model.values(given).toarray()[0, of]
    np.testing.assert_array_equal(given.X.toarray()[0, COLUMNS], STEPS["counts"])
    np.testing.assert_allclose(scaled, STEPS["scaled"], rtol=1e-12)
    np.testing.assert_allclose(scaled * model.medians[of], STEPS["normalised"], rtol=1e-12)
    np.testing.assert_array_equal(ids[0], STEPS["token_ids"])
    embeddings, layers = model.network.embeddings, model.network.encoder["layer"]
    places = {"embedded": embeddings, "word_embedding": embeddings.word_embeddings}
    places |= {f"hidden{i + 1}": layer for i, layer in enumerate(layers)}
    places["layer0_self_attention"] = layers[0].attention["self"]
    places["layer0_attention_output"] = layers[0].attention["output"]
    for name, module in places.items():
        keep = lambda module, given, made, name=name: seen.update({name: made[0]})
        module.register_forward_hook(keep)
    with torch.inference_mode():
        model.network.encode(torch.from_numpy(ids), torch.from_numpy(lengths))
    for mode, name in (("cls", "cls_layer_minus1"), ("cell", "mean_layer_minus1")):
        seen[name] = teacher(emb_mode=mode).embed(given)[0]
    assert {*seen, "columns", "counts", "scaled", "normalised", "token_ids"} == {*STEPS}
    for name, made in seen.items():
        np.testing.assert_allclose(made, STEPS[name], **LIMIT, err_msg=name)


def test_neither_budget_nor_order_of_genes_nor_depth_changes_a_spot():
    given, dice = cells([0, 1, 3, 4, 7] * 3), np.random.default_rng(0)
    single = np.concatenate([teacher().embed(given[[i]]) for i in range(5)])
    shuffled = given[:, dice.permutation(given.n_vars)].copy()
    shuffled.X = shuffled.X.multiply(dice.integers(1, 9, 15)[:, None]).toarray()
    for tokens in (1, 300, 100_000):
        found = teacher(tokens=tokens).embed(shuffled)
        np.testing.assert_allclose(found, np.tile(single, (3, 1)), atol=1e-5)
    half = teacher(precision="bfloat16").embed(given)[:5]
    assert 1e-3 < np.abs(half - single).max() < 0.1


def counted(values) -> anndata.AnnData:
    """Cell 1 with these counts of the first genes of `COLUMNS`."""
    made = cells([1])
    x = made.X.toarray()
    x[0, COLUMNS[: len(values)]] = values
    made.X = x
    return made


def test_what_upstream_leaves_open_is_decided():
    """Columns with exactly one id are summed, and equal values follow the vocabulary."""
    model, given = teacher(), cells([1])
    assert EDGES["exact duplicate id, both expressed"]["tokens_with_that_id"] == 2
    twice = anndata.concat([given, given[:, COLUMNS[1:2]]], axis=1)
    summed = counted(given.X.toarray()[0, COLUMNS] * (1 + (np.arange(12) == 1)))
    np.testing.assert_array_equal(model.tokenise(twice)[0], model.tokenise(summed)[0])
    model.medians[:] = 1.0
    ids = model.tokenise(counted(np.ones(12)))[0][0]
    np.testing.assert_array_equal(ids[1:-1], np.sort(model.columns(given)[COLUMNS]))


@pytest.mark.parametrize("series", ["V1", "V2"])
def test_spots_without_tokens_are_refused_or_dropped(series):
    given, model = cells([0, 2, 1]), teacher(series, unusable="drop")
    x = given.X.toarray()
    x[1], x[2, model.columns(given) >= 0] = 0, 0  # nothing; only genes outside the vocabulary
    given.X = x
    with pytest.raises(PekaError, match="dense"):
        teacher(series).embed(given)
    made, facts = model.embed(given), model.facts(given)
    assert np.isnan(made[1:]).all() and x[2].any() and facts["n_usable"] == 1
    np.testing.assert_array_equal(made[:1], model.embed(cells([0])))
    strict = teacher(series, unusable="drop", min_genes=100)
    assert np.isfinite(strict.embed(cells())).all(1).tolist() == [n in (2, 3, 4) for n in range(8)]
    assert strict.facts(cells())["n_cut_off"] == {"V1": 1, "V2": 2}[series]


def renamed(name: str) -> anndata.AnnData:
    return anndata.AnnData(np.ones((1, 9)), var=pd.DataFrame({"gene_ids": [name] * 9}))


REFUSED = {  # input, options, word of the message
    "negative": (lambda: counted([-1.0]), {}, "-1"),
    "NaN": (lambda: counted([np.nan]), {}, "nan"),
    "log1p": (lambda: counted([0.69]), {}, "whole"),
    "symbols": (cells, {"gene_ids": None}, "Ensembl.*set gene_ids to gene_ids"),
    "symbols only": (lambda: renamed("TP53"), {}, "TP53"),
    "versions": (lambda: renamed("ENSG00000002490.7"), {}, "without a version"),
    "no such column": (cells, {"gene_ids": "ensembl"}, "ensembl.*gene_ids"),
    "V1 has no <cls>": (cells, files_of("V1") | {"emb_mode": "cls"}, "<cls>"),
    "weights of V1": (cells, {"checkpoint": files_of("V1")["checkpoint"]}, "v1/model"),
    "model of V1": (cells, {o: files_of("V1")[o] for o in ("checkpoint", "config")}, "404"),
    "medians of V1": (cells, {"gene_medians": files_of("V1")["gene_medians"]}, "median_v1"),
    "no dictionary": (cells, {"gene_mapping": files_of("V1")["checkpoint"]}, "safetensors"),
    "no configuration": (cells, {"config": files_of("V2")["gene_medians"]}, "hidden_size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused(name):
    given, options, word = REFUSED[name]
    with pytest.raises(PekaError, match=word):
        teacher(**options).embed(given())


def test_pickles_of_numbers_are_read_and_others_run_nothing(tmp_path):
    own, kinds = {}, {"token_dictionary": np.int16, "gene_medians": np.float64, "gene_mapping": str}
    for option, kind in kinds.items():
        own[option] = tmp_path / f"{option}.pkl"
        table = {key: kind(value) for key, value in read(files_of("V1")[option].name).items()}
        own[option].write_bytes(pickle.dumps(table))
    np.testing.assert_array_equal(teacher("V1", **own).embed(cells()), teacher("V1").embed(cells()))
    own["gene_mapping"].write_bytes(pickle.dumps({"a": Path("a class that is called to load it")}))
    with pytest.raises(PekaError, match=r"gene_mapping.*\(pathlib"):
        teacher("V1", **own).embed(cells())


@pytest.mark.parametrize("name", ["V1-10M", "V2-104M", "V2-316M"])
def test_the_keys_of_the_real_sizes_load(name):
    real, small, n = FACTS["dims"][name], read("v2/config.json"), {2: 2}  # token types
    sizes = {"types": 2, "heads": real["heads"], "depth": real["layers"], "eps": 1e-12}
    own = {"genes": "vocab", "positions": "positions", "dim": "hidden", "wide": "intermediate"}
    for key, of in own.items():
        n[small[geneformer.SIZES[key]]] = sizes[key] = real[of]
    state = {"bert.embeddings.position_ids": torch.empty(1)}  # older files have it
    for key, shape in read("checkpoint_keys.json")["v2"].items():
        for i in range(real["layers"] if ".layer.0." in key else ".layer." not in key):
            tensor = torch.empty([n[size] for size in shape], device="meta")
            state[key.replace(".layer.0.", f".layer.{i}.")] = tensor
    network = build_network(sizes, state, "")
    head = sum(tensor.numel() for key, tensor in state.items() if key.startswith("cls."))
    assert sum(p.numel() for p in network.parameters()) == real["parameters"] - head
    assert load_teacher("geneformer").dim({"model": name}) == real["hidden"]
