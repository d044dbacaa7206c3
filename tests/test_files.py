"""Names that become files, and temporary files: nothing outside its folder, nobody else's hidden files."""


import anndata as ad
import numpy as np
import pandas as pd
import pytest

from peka_core.cohort import open_cohort, write_cohort_tables, write_sample
from peka_core.errors import PekaError
from peka_core.files import TEMPORARY, one_name, write_whole
from peka_core.layout.writing import write_tiles
from peka_core.sources import building, hest, hest_index

BAD = (
    "../../evil",
    "/etc/x",
    "a/b",
    "a\\b",
    "..",
    ".",
    "",
    " ",
    ".hidden",
    "a\nb",
    "a\0b",
    "x" * 201,
)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_single_name_is_refused(name):
    with pytest.raises(PekaError, match="here: id"):
        one_name(name, "here: id")


@pytest.mark.parametrize("name", ["P1A", "TENX95", "Brust 3 (links)", "Größe", 7, "a.b", "x" * 200])
def test_names_as_people_give_them_are_taken(name):
    assert one_name(name, "id") == str(name)


def test_a_sample_is_written_inside_its_cohort_or_not_at_all(tmp_path):
    counts = ad.AnnData(
        np.ones((1, 1), np.float32),
        pd.DataFrame(index=["x"]),
        pd.DataFrame(index=["g"]),
        obsm={"spatial": np.zeros((1, 2))},
    )
    tiles = np.zeros((1, 224, 224, 3), np.uint8)
    home = tmp_path / "a" / "cohort"
    with pytest.raises(PekaError, match="evil"):
        write_sample(home, "../../../evil", None, None, ["x"], counts, 0.5)
    with pytest.raises(PekaError, match="evil"):
        write_tiles(home, "../../../evil", tiles, np.zeros((1, 2), int), ["x"], 0.5)
    for samples, splits in ((["../evil"], []), (["S"], [(["S"], ["../evil"])])):
        with pytest.raises(PekaError, match="evil"):
            write_cohort_tables(home, pd.DataFrame({"sample_id": samples}), splits, ["g"])
    assert everything(tmp_path) == []


def test_a_table_whose_ids_lead_elsewhere_is_refused_before_a_file_is_opened(tiny_cohort):
    outside = tiny_cohort.parent / "outside.h5ad"
    (tiny_cohort / "adata" / "P1A.h5ad").rename(outside)
    table = pd.read_csv(tiny_cohort / "samples.csv")
    table.replace({"sample_id": {"P1A": "../../outside"}}).to_csv(
        tiny_cohort / "samples.csv", index=False
    )
    with pytest.raises(PekaError, match=r"samples\.csv.*outside"):
        open_cohort(tiny_cohort)


def test_an_index_of_hest_whose_ids_lead_elsewhere_is_refused(tmp_path):
    row = {
        "id": "../../evil", "species": "Homo sapiens", "st_technology": "Visium", "organ": "Breast", "oncotree_code": "",
        "spots_under_tissue": "5", "pixel_size_um_estimated": "0.5",
    }  # fmt: skip
    pd.DataFrame([row]).to_csv(tmp_path / "index.csv", index=False)
    with pytest.raises(PekaError, match=r"index\.csv.*evil"):
        hest_index.read_slides(tmp_path / "index.csv", "breast", (1, 5))
    with pytest.raises(PekaError, match="evil"):
        hest.build(tmp_path / "cohort", "breast", index=str(tmp_path / "index.csv"), counts=(1, 5))
    assert everything(tmp_path) == ["index.csv"]


def test_resume_takes_away_its_own_temporary_files_alone(tmp_path):
    mine = ("sub/.settings-x", "sub/.abcdefgh-notes", ".12345678-draft.csv")
    for name in (*mine, f"{TEMPORARY}12345678-P1A.h5ad", f"adata/{TEMPORARY}12345678-P1A.h5ad"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "building.json").write_text('{"options": {"source": "hest", "sections": []}}')
    building.claim(tmp_path, {"source": "hest", "sections": []})
    assert [name for name in everything(tmp_path) if "-" in name] == sorted(mine)
    with pytest.raises(PekaError, match="evil"):
        building.claim(tmp_path / "other", {"source": "hest", "sections": ["../evil"]})


def test_temporary_names_begin_as_resume_looks_for_them(tmp_path):
    seen = []
    write_whole(tmp_path / "a.txt", lambda file: (seen.append(file.name), file.write_text("x")))
    assert (
        seen[0].startswith(TEMPORARY)
        and seen[0].endswith("-a.txt")
        and everything(tmp_path) == ["a.txt"]
    )
