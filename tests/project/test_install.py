"""A plain `pip install .`: what the command line and the chapters read comes with the package, and nothing is written into it."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from peka_core import places
from peka_core.commands import command_line as run
from peka_core.downloads import manifest
from peka_core.errors import PekaError

ROOT = Path(__file__).parents[2]


def test_in_a_checkout_everything_is_the_checkouts(monkeypatch, tmp_path):
    for here in (ROOT, ROOT / "notebooks", tmp_path):  # elsewhere: the checkout around the package
        monkeypatch.chdir(here)
        assert places.root() == ROOT and places.results_folder() == ROOT / "results"
        assert (
            places.bundled("notebooks") == ROOT / "notebooks"
            and manifest.load_manifest()["encoders"]
        )


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """An empty working directory, and a package that lies in no checkout."""
    package, here = tmp_path / "site-packages" / "peka_core", tmp_path / "here"
    for name in ("notebooks", "results"):
        (package / "bundled" / name).mkdir(parents=True)
    (package / "bundled" / "data_manifest.yaml").write_text("sources: {}\nencoders: {}\n")
    here.mkdir()
    monkeypatch.setattr(places, "PACKAGE", package)
    monkeypatch.setattr(manifest, "__file__", str(package / "manifest.py"))
    monkeypatch.chdir(here)
    return package, here


def test_an_installed_package_reads_its_own_copy_and_runs_go_into_the_working_directory(
    installed, monkeypatch
):
    package, here = installed
    (here / "results").mkdir()  # the reader's own, of the same name
    assert places.root() == here and places.results_folder() == package / "bundled" / "results"
    assert places.bundled("notebooks") == package / "bundled" / "notebooks"
    assert manifest.load_manifest() == {"sources": {}, "encoders": {}}
    assert run._home(places.bundled("notebooks") / "01_data.ipynb") == here
    assert run._home(here / "mine.ipynb") == here
    monkeypatch.chdir(
        package / "bundled" / "notebooks"
    )  # no checkout, though a manifest lies above
    assert places.root() == package / "bundled" / "notebooks"


def test_a_notebook_of_a_run_finds_the_folder_of_its_runs(installed, monkeypatch):
    _, here = installed
    (here / "runs/mine/notebooks").mkdir(parents=True)
    (here / "runs/mine/run.json").write_text("{}")
    monkeypatch.chdir(here / "runs/mine/notebooks")
    assert places.root() == here


def test_without_any_manifest_there_is_one_message(installed):
    package, _ = installed
    (package / "bundled" / "data_manifest.yaml").unlink()
    with pytest.raises(PekaError, match="data_manifest.yaml"):
        manifest.load_manifest()


@pytest.mark.slow
def test_a_built_wheel_works_in_an_empty_folder(tmp_path):
    """No network: the wheel is built without isolation, and the new environment sees this one's packages, not this checkout."""
    source, env = (
        tmp_path / "source",
        {name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    skipped = shutil.ignore_patterns(
        ".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", "tests"
    )
    shutil.copytree(ROOT, source, ignore=skipped)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run(
        [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
        env=env,
    )
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    packages = Path(
        subprocess.check_output(
            [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
        ).strip()
    )
    (packages / "others.pth").write_text(
        sysconfig.get_path("purelib") + "\n"
    )  # .pth files in there, as of an editable install, do not count
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run(
        [*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel],
        check=True,
        env=env,
    )
    shutil.rmtree(source)
    here = tmp_path / "empty"
    here.mkdir()

    def peka(*words):
        done = subprocess.run(
            [python.parent / "peka", *words], cwd=here, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "h-optimus-0" in peka("list") and "profile: memory" in peka("run", "smoke", "--plan")
    said = peka("doctor", "smoke")
    assert "constraints.txt" not in said and str(here / "runs") in said  # versions were compared
    code = "from peka_core import places; from peka_core.studies import paper_tables; print(places.PACKAGE, len(paper_tables.published()), *sorted(p.name for p in places.bundled('notebooks').iterdir()))"
    package, rows, *books = subprocess.check_output(
        [python, "-c", code], cwd=here, env=env, text=True
    ).split()
    assert (
        Path(package).is_relative_to(packages)
        and int(rows) > 50
        and books == [f"{chapter}.ipynb" for chapter in run.CHAPTERS]
    )
    committed = {path.name for path in (ROOT / "results").glob("*.csv")}
    assert {path.name for path in (Path(package) / "bundled/results").iterdir()} == committed
    assert list(here.iterdir()) == []
