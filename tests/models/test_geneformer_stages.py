"""Geneformer in a cohort and in a run, with the drawn weights of `test_geneformer`."""

import dataclasses
import json
from pathlib import Path

import anndata
import numpy as np
import pytest
from test_geneformer import files_of, read, teacher

from peka_core.cohort import open_cohort
from peka_core.common.errors import PekaError
from peka_core.protocols import PROTOCOLS
from peka_core.runner import stages


def test_a_cohort_names_its_ids_in_a_column_that_all_sections_share(tiny_cohort):
    ids = [name for name in read("token_v2.json") if name.startswith("ENSG")][:30]
    sections = sorted(tiny_cohort.glob("adata/*.h5ad"))
    for path in sections:
        adata = anndata.read_h5ad(path)
        adata.var["gene_ids"] = ids
        adata.write_h5ad(path)
    assert np.isfinite(teacher().embed(open_cohort(tiny_cohort).adata(join="outer"))).all()
    adata.var["gene_ids"] = ids[::-1]
    adata.write_h5ad(sections[0])
    with pytest.raises(PekaError, match="no column 'gene_ids'"):
        teacher().embed(open_cohort(tiny_cohort).adata(join="outer"))


def geneformer_files(work, folder) -> dict[str, str]:
    """Options that name drawn weights, and tables with the genes of a run."""
    names = [name.upper() for name in work.cohort().adata().var_names[:400]]
    special = ["<pad>", "<mask>", "<cls>", "<eos>"]
    tables = {"token_dictionary": {name: i for i, name in enumerate(special + names)}}
    tables |= {"gene_medians": dict.fromkeys(names, 1.5), "gene_mapping": dict(zip(names, names))}
    own = files_of("V2")
    for option, table in tables.items():
        own[option] = folder / f"{option}.json"
        own[option].write_text(json.dumps(table))
    return {name: str(path) for name, path in own.items()}


def test_a_student_is_taught_by_it(work, tmp_path):
    own = geneformer_files(work, tmp_path)
    options = own | {"emb_mode": "cell"}
    profile = dataclasses.replace(work.profile, teacher="geneformer", teacher_options=options)
    taught = dataclasses.replace(work, profile=profile)
    made = stages.teacher(taught, "patients/0")
    assert made.obsm["X_teacher"].shape == (len(made), 32) and made.obs["teacher_usable"].all()
    assert made.uns["teacher"]["license"] == "Apache-2.0"
    scores = stages.score(taught, "bat", PROTOCOLS["strict"], splits=("patients/0",)).scores
    assert np.isfinite(scores["pcc"]).any()
    name, moved = taught.teacher_name, tmp_path / "moved.json"
    moved.write_bytes(Path(own["gene_medians"]).read_bytes())
    again = lambda **more: (
        dataclasses.replace(
            taught, profile=dataclasses.replace(profile, teacher_options=options | more)
        ).teacher_name
    )
    assert again(gene_medians=str(moved), tokens=9) == name and str(tmp_path) not in name
    assert len({name, again(emb_mode="cls"), again(gene_ids="id"), again(emb_layer=0)}) == 4
