"""Names that become files, temporary files, JSON, and values as people write them."""

import json
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest
from damage import refused
from draw_hest import row, write_index

from peka_core.cohort import write_cohort_tables, write_sample
from peka_core.common.errors import PekaError
from peka_core.common.files import TEMPORARY, one_name, write_json, write_whole
from peka_core.common.typed_values import fitted, read_yaml, weights_of
from peka_core.layout.writing import write_tiles
from peka_core.sources import building, hest

BAD = ("../../evil", "/etc/x", "a\\b", "..", ".", "", " ", ".hidden", "a\nb", "a\0b", "x" * 201)
EVIL = pd.DataFrame({"sample_id": ["../evil"]})


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_single_name_is_refused(name):
    refused(name, "here: id", call=lambda name: one_name(name, "here: id"))


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


@pytest.mark.parametrize("text, value", [
    ("1e-4", 1e-4), ("1e4", 1e4), ("-1e-3", -1e-3), (".5", 0.5), ("1.", 1.0), ("2.5E+3", 2500.0),
    ("16", 16), ("-3", -3), ("010", 10), ("1:30", "1:30"), ("1.2.3", "1.2.3"), ("e5", "e5"),
    ("off", False), ("'1'", "1"), ("[1e-4, a]", [1e-4, "a"]), ("", None),
])  # fmt: skip
def test_numbers_are_what_they_look_like(text, value):
    found = read_yaml(text, "it", "a value")
    assert found == value and type(found) is type(value)


def test_a_name_that_is_written_twice_is_refused_with_its_line():
    read = lambda text: read_yaml(text, "p.yaml", "a profile")
    refused("title: one\nseed: 0\ntitle: two\n", "p.yaml, line 3", call=read)


@pytest.mark.parametrize("value, kind, found", [
    (np.int64(3), int, 3), (3, float, 3.0), (np.float32(0.5), float, 0.5), (True, bool, True),
    (None, int | None, None), ([], tuple, ()), (["a", "b"], tuple[str, ...], ("a", "b")),
    ([1, 2], tuple[int, int] | None, (1, 2)), ("all", Iterable[str] | str, "all"),
    (["B4"], Iterable[str] | str, ["B4"]),
])  # fmt: skip
def test_a_value_takes_its_declared_type(value, kind, found):
    made = fitted(value, kind, "it")
    assert made == found and type(made) is type(found)


@pytest.mark.parametrize("value, kind", [
    *[(value, int) for value in (1.0, True, "1", None)],
    *[(value, float) for value in (True, "1e-4", float("nan"), float("inf"))],
    (1, bool), (1, str), ("attn", tuple[str, ...]), ([1], tuple[str, ...]), ([1], tuple[int, int]),
])  # fmt: skip
def test_a_value_of_another_type_is_refused_by_name(value, kind):
    refused(value, "it", call=lambda value: fitted(value, kind, "it"))


@pytest.mark.parametrize("item", ["uni", "uni=", "=uni.bin", " =uni.bin"])
def test_weights_need_a_name_and_a_path(item):
    with pytest.raises(PekaError, match="--weights"):
        weights_of(["mini=a=b", item])
    assert weights_of(["mini=a=b"]) == {"mini": "a=b"}
