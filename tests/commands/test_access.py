"""What may not be read is not said to be unwritable, and JSON holds no NaN."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from peka_core.files import write_json

CHECKOUT = Path(__file__).parents[2]
AS_A_USER = [
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
]
SCRIPT = """
import sys
from pathlib import Path
import h5py
from peka_core.cohort import open_cohort
from peka_core.files import PekaError, told_when_full
from peka_core.commands.command_line import main

cohort, name = Path(sys.argv[1]), sys.argv[2]
try:
    open_cohort(cohort)
except PekaError as error:
    print(error)
def read(file):
    h5py.File(file) if file.suffix.startswith(".h5") else file.read_text()
try:
    with told_when_full(cohort / "out"):  # a unit is being written while this is read
        read(cohort / name)
except PekaError as error:
    print(error)
import peka_core.commands.command_line
peka_core.commands.command_line._list = lambda _: read(cohort / name)
try:
    print(main(["list"]))
except OSError as error:  # HDF5's own error, outside our readers
    print("may not be read, raised as", error)
"""


@pytest.mark.parametrize(
    "name",
    ["samples.csv", "splits/test_0.csv", "var_20genes.json", "adata/P1A.h5ad", "patches/P1A.h5"],
)
def test_a_file_that_may_not_be_read_is_said_to_be_that(tiny_cohort, name):
    root = os.geteuid() == 0
    if root and not shutil.which("setpriv"):
        pytest.skip("root reads everything, and there is no setpriv to give up that right")
    (tiny_cohort / name).chmod(0)
    words = [*(AS_A_USER if root else []), sys.executable, "-c", SCRIPT, str(tiny_cohort), name]
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        timeout=300,
    )
    (tiny_cohort / name).chmod(0o644)
    said = done.stdout + done.stderr
    assert "Traceback" not in said and "written" not in said and "elete" not in said, said
    assert said.count("may not be read") == 3 and said.count(str(tiny_cohort / name)) >= 3, said


def test_json_holds_null_where_a_number_is_not_finite(tmp_path):
    content = {
        "a": float("nan"),
        "b": [1.5, float("-inf")],
        "c": ({"d": float("inf"), "e": 2},),
        "f": "NaN",
        "g": True,
    }
    text = write_json(tmp_path / "o.json", content).read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None,
        "b": [1.5, None],
        "c": [{"d": None, "e": 2}],
        "f": "NaN",
        "g": True,
    }
