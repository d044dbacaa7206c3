"""Names that become files, temporary files, files that may not be read, and JSON."""

import errno
import json

import pandas as pd
import pytest
from damage import refused
from draw_hest import row, write_index

from peka_core.cohort import write_cohort_tables, write_sample
from peka_core.commands import command_line
from peka_core.common import files
from peka_core.common.files import TEMPORARY, one_name, write_json, write_whole
from peka_core.layout.writing import write_tiles
from peka_core.sources import building, hest

BAD = ("../../evil", "/etc/x", "a\\b", "..", ".", "", " ", ".hidden", "a\nb", "a\0b", "x" * 201)


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_single_name_is_refused(name):
    refused(name, "here: id", call=lambda name: one_name(name, "here: id"))
    for good in ("Brust 3 (links)", "Größe", 7, "a.b", "x" * 200):
        assert one_name(good, "id") == str(good)


EVIL = pd.DataFrame({"sample_id": ["../evil"]})


@pytest.mark.parametrize("write", [
    lambda home: write_sample(home, "../evil", None, None, ["x"], None, 0.5),
    lambda home: write_tiles(home, "../evil", None, None, ["x"], 0.5),
    lambda home: write_cohort_tables(home, EVIL, [], ["g"]),
    lambda home: write_cohort_tables(home, EVIL[:0], [(["S"], ["../evil"])], ["g"]),
    lambda home: building.claim(home, {"source": "hest", "sections": ["../evil"]}),
    lambda home: hest.build(home, "breast", index=str(home.parent / "index.csv"), counts=(1, 14)),
])  # fmt: skip
def test_a_name_that_leads_elsewhere_ends_before_anything_is_written(tmp_path, write):
    write_index(tmp_path, [row("../evil")])
    refused(tmp_path / "cohort", "evil", call=write)
    assert everything(tmp_path) == ["index.csv"]


def test_resume_takes_away_its_own_temporary_files_alone(tmp_path):
    mine, seen = ("sub/.settings-x", "sub/.abcdefgh-notes", ".12345678-draft.csv"), []
    write_whole(tmp_path / "a.txt", lambda file: (seen.append(file.name), file.write_text("x")))
    assert seen[0].startswith(TEMPORARY) and everything(tmp_path) == ["a.txt"]
    for name in (*mine, f"{TEMPORARY}12345678-P1A.h5ad", f"adata/{TEMPORARY}12345678-P1A.h5ad"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    (tmp_path / "building.json").write_text('{"options": {"source": "hest", "sections": []}}')
    building.claim(tmp_path, {"source": "hest", "sections": []})
    assert [name for name in everything(tmp_path) if "-" in name] == sorted(mine)


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
    refused(tmp_path / "out.csv", "table.csv may not", call=lambda path: write_whole(path, read))
    monkeypatch.setattr(command_line, "_list", read)
    assert command_line.main(["list"]) == 1 and "table.csv may not" in capsys.readouterr().err
