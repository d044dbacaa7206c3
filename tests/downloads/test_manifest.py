"""The manifest: what is pinned, and names that it does not have."""

import pandas as pd
import pytest

from peka_core.common.errors import PekaError
from peka_core.downloads import manifest


def test_unknown_names_are_refused():
    with pytest.raises(PekaError, match=r"her2st/x.*her2st/y"):
        manifest.source_files("her2st", ["her2st/x", "her2st/y"])
    with pytest.raises(PekaError, match="tox"):
        manifest.source_files("tox", [])
    with pytest.raises(PekaError, match=r"nowhere\.yaml"):
        manifest.load_manifest("nowhere.yaml")


def test_a_file_may_have_an_address_of_its_own_terms_and_a_way_by_hand():
    paths = ["scfoundation/models.ckpt", "scfoundation/OS_scRNA_gene_index.19264.tsv"]
    weights, genes = manifest.source_files("scfoundation", paths)
    assert weights.url.endswith("/models.ckpt") and "huggingface.co" in weights.url
    assert "non-commercial" in weights.terms and "model/README.md" in weights.otherwise
    assert genes.url.endswith("d09626a5c1bc30b9c6227378677b61e0b987fe8b/" + paths[1].split("/")[1])
    assert genes.facts["size"] == 228_232 and not genes.terms and not genes.repo


def test_the_manifest_pins_36_sections():
    source = manifest.load_manifest()["sources"]["her2st"]
    assert len(source["url"].rstrip("/").split("/")[-1]) == 40 and len(source["files"]) == 118
    for part in ("/ST-cnts/", "/ST-spotfiles/", "/ST-imgs/"):
        assert sum(part in file for file in source["files"]) == 36
    for facts in source["files"].values():
        assert len(facts["blob"]) == 40 and ("sha256" in facts) == ("size" in facts)


def test_the_manifest_is_the_list_of_facts(shared):
    path = shared / "data/her2st/files.tsv"
    listed = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    files = manifest.load_manifest()["sources"]["her2st"]["files"]
    assert list(files) == [f"her2st/{path}" for path in listed.path]
    for row in listed.itertuples():
        mine = files[f"her2st/{row.path}"]
        pinned = (mine["blob"], str(mine.get("size", "")), mine.get("sha256", ""))
        assert pinned == (row.git_blob_sha1, row.size, row.sha256)
