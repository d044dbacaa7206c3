"""The manifest: what is pinned, and names that it does not have."""

import pandas as pd
from damage import refused

from peka_core.downloads import manifest


def test_unknown_names_are_refused():
    refused("her2st", "her2st/x", call=lambda name: manifest.source_files(name, ["her2st/x"]))
    refused("tox", "tox", call=lambda name: manifest.source_files(name, []))
    refused("nowhere.yaml", "nowhere.yaml", call=manifest.load_manifest)


def test_a_file_has_its_sources_address_or_one_of_its_own_with_terms_and_a_way_by_hand():
    names = ["models.ckpt", "OS_scRNA_gene_index.19264.tsv"]
    weights, genes = manifest.source_files("scfoundation", [f"scfoundation/{n}" for n in names])
    assert weights.url.endswith("/models.ckpt") and "huggingface.co" in weights.url
    assert "non-commercial" in weights.terms and "model/README.md" in weights.otherwise
    assert genes.url.endswith(f"/{names[1]}") and genes.is_pinned and not genes.terms


def test_every_file_of_her2st_is_pinned_as_in_the_list_of_facts(shared):
    path = shared / "data/her2st/files.tsv"
    listed = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    files = manifest.load_manifest()["sources"]["her2st"]["files"]
    facts = [(m["blob"], str(m.get("size", "")), m.get("sha256", "")) for m in files.values()]
    assert [name.removeprefix("her2st/") for name in files] == list(listed.path)
    assert facts == list(zip(listed.git_blob_sha1, listed["size"], listed.sha256))
