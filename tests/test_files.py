"""Names that become files, temporary files, files that may not be read, and JSON."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from peka_core.cohort import open_cohort, write_cohort_tables, write_sample
from peka_core.common.errors import PekaError
from peka_core.common.files import TEMPORARY, one_name, write_json, write_whole
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
CHECKOUT = Path(__file__).parents[1]


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


def test_json_holds_null_where_a_number_is_not_finite(tmp_path):
    content = {"a": float("nan"), "b": [1.5, float("-inf")], "c": ({"d": 2},), "f": "NaN"}
    text = write_json(tmp_path / "o.json", content).read_text()
    wanted = {"a": None, "b": [1.5, None], "c": [{"d": 2}], "f": "NaN"}
    assert json.loads(text, parse_constant=pytest.fail) == wanted


AS_A_USER = "--bounding-set=-dac_override,-dac_read_search"
READ = """
import sys
from pathlib import Path
import h5py
from peka_core.cohort import open_cohort
from peka_core.commands import command_line
from peka_core.common.errors import PekaError
from peka_core.common.files import told_when_full
cohort, name = Path(sys.argv[1]), sys.argv[2]
def read(file):
    h5py.File(file) if file.suffix.startswith(".h5") else file.read_text()
def while_writing():
    with told_when_full(cohort / "out"):
        read(cohort / name)
for attempt in (lambda: open_cohort(cohort), while_writing):
    try:
        attempt()
    except PekaError as error:
        print(error)
command_line._list = lambda _: while_writing()
print(command_line.main(["list"]))
"""


@pytest.mark.parametrize("name", ["samples.csv", "adata/P1A.h5ad"])
def test_a_file_that_may_not_be_read_is_not_called_unwritable(tiny_cohort, name):
    root = os.geteuid() == 0
    if root and not shutil.which("setpriv"):
        pytest.skip("root reads everything, and there is no setpriv to give up that right")
    (tiny_cohort / name).chmod(0)
    user = ["setpriv", AS_A_USER, AS_A_USER.replace("bounding-set", "inh-caps")] if root else []
    words = [*user, sys.executable, "-c", READ, str(tiny_cohort), name]
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    (tiny_cohort / name).chmod(0o644)
    said = done.stdout + done.stderr
    assert "Traceback" not in said and "written" not in said, said
    assert said.count(str(tiny_cohort / name)) >= 3 and said.count("may not be read") == 3, said
