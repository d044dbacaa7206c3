"""Names that become files, temporary files, files that may not be read, and JSON."""

import errno
import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from peka_core.cohort import open_cohort, write_cohort_tables, write_sample
from peka_core.commands import command_line
from peka_core.common import files
from peka_core.common.errors import PekaError
from peka_core.common.files import TEMPORARY, one_name, write_json, write_whole
from peka_core.layout.writing import write_tiles
from peka_core.sources import building, hest, hest_index

BAD = ("../../evil", "/etc/x", "a\\b", "..", ".", "", " ", ".hidden", "a\nb", "a\0b", "x" * 201)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_single_name_is_refused(name):
    with pytest.raises(PekaError, match="here: id"):
        one_name(name, "here: id")
    for good in ("Brust 3 (links)", "Größe", 7, "a.b", "x" * 200):
        assert one_name(good, "id") == str(good)


def test_a_sample_is_written_inside_its_cohort_or_not_at_all(tmp_path):
    obs, var = pd.DataFrame(index=["x"]), pd.DataFrame(index=["g"])
    counts = ad.AnnData(np.ones((1, 1)), obs, var, obsm={"spatial": np.zeros((1, 2))})
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
    row = {"id": "../../evil", "species": "Homo sapiens", "st_technology": "Visium"}
    row |= {"organ": "Breast", "oncotree_code": "", "spots_under_tissue": "5"}
    row |= {"pixel_size_um_estimated": "0.5"}
    pd.DataFrame([row]).to_csv(tmp_path / "index.csv", index=False)
    with pytest.raises(PekaError, match=r"index\.csv.*evil"):
        hest_index.read_slides(tmp_path / "index.csv", "breast", (1, 5))
    with pytest.raises(PekaError, match="evil"):
        hest.build(tmp_path / "cohort", "breast", index=str(tmp_path / "index.csv"), counts=(1, 5))
    assert everything(tmp_path) == ["index.csv"]


def test_resume_takes_away_its_own_temporary_files_alone(tmp_path):
    mine = ("sub/.settings-x", "sub/.abcdefgh-notes", ".12345678-draft.csv")
    seen = []
    write_whole(tmp_path / "a.txt", lambda file: (seen.append(file.name), file.write_text("x")))
    assert seen[0].startswith(TEMPORARY) and everything(tmp_path) == ["a.txt"]
    for name in (*mine, f"{TEMPORARY}12345678-P1A.h5ad", f"adata/{TEMPORARY}12345678-P1A.h5ad"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "building.json").write_text('{"options": {"source": "hest", "sections": []}}')
    building.claim(tmp_path, {"source": "hest", "sections": []})
    assert [name for name in everything(tmp_path) if "-" in name] == sorted(mine)
    with pytest.raises(PekaError, match="evil"):
        building.claim(tmp_path / "other", {"source": "hest", "sections": ["../evil"]})


def test_json_holds_null_where_a_number_is_not_finite(tmp_path):
    content = {"a": float("nan"), "b": [1.5, float("-inf")], "c": ({"d": 2},), "f": "NaN"}
    text = write_json(tmp_path / "o.json", content).read_text()
    wanted = {"a": None, "b": [1.5, None], "c": [{"d": 2}], "f": "NaN"}
    assert json.loads(text, parse_constant=pytest.fail) == wanted


def test_a_file_that_may_not_be_read_is_not_called_unwritable(tmp_path, monkeypatch, capsys):
    closed = tmp_path / "table.csv"
    closed.touch()

    def read(_):
        raise PermissionError(errno.EACCES, "Permission denied", str(closed))

    monkeypatch.setattr(files, "_is_closed", lambda file: file == str(closed))
    with pytest.raises(PekaError, match="table.csv may not be read"):
        write_whole(tmp_path / "out.csv", read)
    monkeypatch.setattr(command_line, "_list", read)
    assert command_line.main(["list"]) == 1 and "table.csv may not" in capsys.readouterr().err
