"""Values from outside: numbers as people write them, declared types, and malformed files."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from damage import refused

from peka_core.common.typed_values import fitted, read_mapping, read_yaml


@pytest.mark.parametrize("text, value", [
    ("1e-4", 1e-4), ("1e4", 1e4), ("-1e-3", -1e-3), (".5", 0.5), ("1.", 1.0), ("2.5E+3", 2500.0),
    ("16", 16), ("-3", -3), ("010", 10),
    ("1:30", "1:30"), ("1.2.3", "1.2.3"), ("e5", "e5"), ("off", False), ("'1'", "1"),
    ("[1e-4, a]", [1e-4, "a"]), ("", None),
])  # fmt: skip
def test_numbers_are_what_they_look_like(text, value):
    found = read_yaml(text, "it", "a value")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("content, line", [
    (b"base: smoke\nrecipe:\n\tepochs: 1\n", 3), (b"", 1), (b"- a\n- b\n", 1),
    (b"title: one\nseed: 0\ntitle: two\n", 3),
    ("title: ma\u00eftre\n".encode("latin-1"), 1), (b"few: {a: 1\n", 2), (b"just text\n", 1),
])  # fmt: skip
def test_a_malformed_file_ends_in_one_message_with_its_line(tmp_path, content, line):
    (tmp_path / "p.yaml").write_bytes(content)
    read = lambda path: read_mapping(path, "a profile")
    refused(tmp_path / "p.yaml", tmp_path / "p.yaml", f"line {line}", call=read)


REFUSED = object()


@pytest.mark.parametrize("value, kind, found", [
    (3, int, 3), (np.int64(3), int, 3), (3, float, 3.0), (np.float32(0.5), float, 0.5),
    ("a", str, "a"), (True, bool, True), (None, int | None, None), ([], tuple, ()),
    (["a", "b"], tuple[str, ...], ("a", "b")), ([1, 2], tuple[int, int] | None, (1, 2)),
    ("all", Iterable[str] | str, "all"), (["B4"], Iterable[str] | str, ["B4"]),
    (Path("x"), str | Path | None, Path("x")),
    *[(value, int, REFUSED) for value in (1.0, True, "1", None)],
    *[(value, float, REFUSED) for value in (True, "1e-4", float("nan"), float("inf"))],
    (1, bool, REFUSED), (1, str, REFUSED), ([], dict, REFUSED), ("attn", tuple[str, ...], REFUSED),
    ([1], tuple[str, ...], REFUSED), ([1], tuple[int, int], REFUSED),
    (5, Iterable[str] | str, REFUSED),
])  # fmt: skip
def test_a_value_takes_its_declared_type_or_is_refused_by_name(value, kind, found):
    if found is REFUSED:
        refused(value, "it", call=lambda value: fitted(value, kind, "it"))
    else:
        made = fitted(value, kind, "it")
        assert made == found and type(made) is type(found)
