"""Chapters in a real JupyterLab, as a person runs them, in a copy of this folder (`make test-lab`).

All chapters run on the demo, single ones on the profile smoke, which is drawn in a third of the
time. Committed outputs prove nothing, so they are cleared first. JupyterLab draws only the cells
that are on the screen, so the saved file is read and the page is scrolled.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browsing import open_browser, setting

from peka_core.commands.notebooks import CHAPTERS

ROOT = Path(__file__).parents[2]
WANTED = setting("PEKA_LAB", "test-lab")
ASKED = CHAPTERS if WANTED == "all" else tuple(WANTED.split(","))
MINUTES = 15  # for the slowest chapter, on a busy machine
WRONG = "-98765.4321"  # no exercise's answer

pytestmark = [pytest.mark.browser, pytest.mark.slow]
browser = pytest.fixture(scope="module")(open_browser)


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory) -> Path:
    """The folder of notebooks in a copy of this checkout: running chapters rewrites its files."""
    copy = tmp_path_factory.mktemp("lab") / "copy"
    words = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(words, cwd=ROOT, text=True).split("\0")[:-1]:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    for chapter in () if WANTED == "all" else ASKED:
        path = copy / f"notebooks/{chapter}.ipynb"
        text = path.read_text(encoding="utf-8")
        assert r"profile = \"demo\"" in text
        path.write_text(
            text.replace(r"profile = \"demo\"", r"profile = \"smoke\""), encoding="utf-8"
        )
    return copy / "notebooks"


@pytest.fixture(scope="module")
def lab(notebooks):
    """JupyterLab with settings of its own; yields the address of its notebooks."""
    if not shutil.which("jupyter-lab", path=str(Path(sys.executable).parent)):
        pytest.importorskip("jupyterlab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = notebooks.parents[1]
    env = os.environ | {"PYTHONPATH": str(notebooks.parent), "PEKA_LAB": ""}
    env |= {f"JUPYTER_{kind}_DIR": str(home / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    options = {
        "IdentityProvider.token": "lab", "ServerApp.port": port, "ServerApp.port_retries": 0,
        "ServerApp.open_browser": False, "ServerApp.allow_root": True, "ServerApp.ip": "127.0.0.1",
        "ServerApp.root_dir": notebooks, "LabApp.news_url": None,
        "LabApp.expose_app_in_browser": True,
    }  # fmt: skip
    words = [f"--{name}={value}" for name, value in options.items()]
    with (home / "lab.log").open("w") as log:
        command = [sys.executable, "-m", "jupyterlab", *words]
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
    end = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token=lab").close()
            break
        except OSError:
            assert server.poll() is None and time.monotonic() < end, (home / "lab.log").read_text()
            time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token=lab&reset"
    server.terminate()
    server.wait(30)


PANEL = "jupyterapp.shell.currentWidget"
CODE = f"{PANEL}.content.model.sharedModel.toJSON().cells.filter(c => c.cell_type == 'code')"
CLEARED = f"() => {CODE}.every(c => c.execution_count === null && !c.outputs.length)"
ENDED = f"""() => {{
  const code = {CODE}, idle = {PANEL}.sessionContext.session.kernel.status == 'idle';
  const failed = code.some(c => c.outputs.some(o => o.output_type == 'error'));
  const empty = c => ![c.source].flat().join('').trim();
  return idle && (failed || code.every(c => c.execution_count || empty(c)));
}}"""
SAVED = f"() => !{PANEL}.context.model.dirty"
SCROLL = f"""top => {{
  const place = {PANEL}.content.node.querySelector('.jp-WindowedPanel-outer');
  place.scrollTop = top;
  return place.scrollTop + place.clientHeight >= place.scrollHeight - 2;
}}"""
PAINTED = """[...document.querySelectorAll('.jp-RenderedImage img')]
  .filter(i => i.complete && i.naturalWidth).map(i => i.src.slice(-4000))"""


def run_all(browser, address: str) -> tuple[int, list[str]]:
    """Open a notebook, clear its outputs, run all cells and save it, with the menus.

    Returns the number of different figures that were painted while the page was scrolled, and the
    errors of the browser's console.
    """
    page, said = browser.new_page(viewport={"width": 1400, "height": 1000}), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    page.wait_for_selector("text=/Python 3.*\\| Idle/", timeout=60_000)  # the toolbar lies before

    def choose(menu: str, item: str) -> None:
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile(f"^{menu}$")).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile(f"^{item}$")).click()

    choose("Edit", "Clear Outputs of All Cells")
    page.wait_for_function(CLEARED)
    choose("Run", "Run All Cells")
    page.wait_for_function(ENDED, timeout=MINUTES * 60_000, polling=300)
    choose("File", "Save Notebook")
    page.wait_for_function(SAVED)
    painted, top, at_end = set(), 0, False
    while not at_end:
        at_end = page.evaluate(SCROLL, top)
        page.wait_for_timeout(60)
        painted |= set(page.evaluate(PAINTED))
        top += 500
    page.evaluate(f"{PANEL}.sessionContext.shutdown()")  # a kernel keeps up to 2 GB
    page.close()
    return len(painted), said


def images_of(cell: dict) -> int:
    kinds = [kind for out in cell["outputs"] for kind in out.get("data", {})]
    return sum(kind.startswith("image/") for kind in kinds)


def errors_of(cell: dict) -> list[str]:
    failed = [out for out in cell.get("outputs", []) if out["output_type"] == "error"]
    return [f"{error['ename']}: {error['evalue']}" for error in failed]


def check(path: Path, painted: int, said: list[str]) -> None:
    """The saved notebook was run from top to bottom without an error, and has its figures."""
    code = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    assert [error for cell in code for error in errors_of(cell)] == []
    full = [cell for cell in code if "".join(cell["source"]).strip()]
    assert [cell["execution_count"] for cell in full] == list(range(1, len(full) + 1))
    texts = [o["text"] for c in code for o in c["outputs"] if o.get("name") == "stderr"]
    assert texts == []
    described = [cell for cell in code if cell["metadata"].get("mystnb", {}).get("image")]
    assert all(images_of(cell) == 1 for cell in described)
    assert painted >= sum(map(images_of, code)) > 0
    assert said == []


@pytest.mark.parametrize("chapter", ASKED)
def test_a_chapter_runs_from_top_to_bottom(browser, lab, notebooks, chapter):
    painted, said = run_all(browser, lab.format(f"{chapter}.ipynb"))
    check(notebooks / f"{chapter}.ipynb", painted, said)


def test_a_wrong_answer_in_an_exercise_stops_the_run(browser, lab, notebooks):
    book = json.loads((notebooks / f"{ASKED[0]}.ipynb").read_text())
    for cell in book["cells"]:
        source = "".join(cell["source"])
        empty = re.search(r"^(\w+ = )(\.\.\.|None)", source, re.M)
        if "exercise" in cell["metadata"].get("tags", []) and empty:
            start, end = empty.span(2)
            cell["source"] = source[:start] + WRONG + source[end:]
            break
    else:
        pytest.fail(f"{ASKED[0]} has no exercise whose answer is `name = ...`")
    path = notebooks / "wrong.ipynb"
    path.write_text(json.dumps(book))
    painted, said = run_all(browser, lab.format(path.name))
    with pytest.raises(AssertionError, match="AssertionError"):
        check(path, painted, said)
    cells = json.loads(path.read_text())["cells"]
    (failed,) = [cell for cell in cells if errors_of(cell)]
    assert "solution" in failed["metadata"]["tags"]
