"""The page of maps: in a browser, a click on a tile reads the value that was predicted."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request

import cv2
import numpy as np
import pytest
from fake_slide import ColourModel, drawn_slide
from matplotlib import colormaps

from peka_core.slides.image import open_slide
from peka_core.slides.page import write_page
from peka_core.slides.prediction import predict_slide

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Browser:
    """A headless Chromium that is told what to do by Chrome's DevTools protocol."""

    def __init__(self, program, url, folder):
        import websocket

        options = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
            "--remote-allow-origins=*", f"--user-data-dir={folder}", "--window-size=1200,800",
        ]  # fmt: skip
        self.process = subprocess.Popen([program, *options, url], stderr=subprocess.PIPE, text=True)
        line = next(line for line in self.process.stderr if "DevTools listening" in line)
        port = line.split("127.0.0.1:")[1].split("/")[0]
        pages = []
        while not pages:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
                pages = [page for page in json.load(answer) if page["type"] == "page"]
        self.socket = websocket.create_connection(pages[0]["webSocketDebuggerUrl"], timeout=60)
        self.count = 0

    def send(self, method, **parameters):
        self.count += 1
        message = {"id": self.count, "method": method, "params": parameters}
        self.socket.send(json.dumps(message))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.count:
                return answer["result"]

    def value(self, expression):
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression):
        end = time.monotonic() + 60
        while not self.value(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.05)

    def key(self, key):
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key)

    def mouse(self, x, y, *kinds, **more):
        for kind in kinds:
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def touch(self, kind, *places):
        points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(places)]
        self.send("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    def click(self, x, y):
        self.mouse(x, y, "mouseMoved")
        self.mouse(x, y, "mousePressed", "mouseReleased", button="left", clickCount=1)

    def pixels(self):
        png = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]

    def close(self):
        self.socket.close()
        self.process.terminate()
        self.process.wait(20)
        self.process.stderr.close()


@pytest.fixture
def browser(tmp_path):
    pytest.importorskip("websocket")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    opened = []

    def open_page(path):
        opened.append(Browser(program, path.as_uri(), tmp_path / "profile"))
        opened[0].wait('document.documentElement?.dataset.ready === "yes"')
        return opened[0]

    yield open_page
    for browser in opened:
        browser.close()


def large(found):
    """The same prediction for 5,676 tiles and 50 genes."""
    import anndata as ad
    import pandas as pd

    rng, (columns, rows) = np.random.default_rng(0), (86, 66)
    index = np.stack(np.divmod(np.arange(columns * rows), rows), 1)  # (n, 2) column, row
    x = rng.normal(1, 1, (len(index), 50)).astype(np.float32)
    genes = [f"G{i:02d}" for i in range(50)]
    var = pd.DataFrame({"pcc": np.linspace(0.5, 0.01, 50), "supported": True}, index=genes)
    obs = pd.DataFrame({"distance": rng.uniform(0, 2, len(index))})
    obs["unfamiliar"] = obs["distance"] > 1.22
    obs.index = [f"{a}x{b}" for a, b in index]
    made = ad.AnnData(x, obs, var, obsm={"spatial": index * 224 + 112.0})
    made.uns["peka"] = found.uns["peka"] | {"um_per_px": 0.5}
    return made


@pytest.mark.browser
def test_a_click_on_a_tile_reads_its_value(tmp_path, browser):
    drawn_slide(tmp_path / "slide.png")
    small = predict_slide(
        ColourModel(), open_slide(tmp_path / "slide.png", 1.0), tmp_path / "out", [[500.0, 400.0]]
    )
    found, size = large(small), (86 * 224 + 100, 66 * 224 + 50)
    picture = np.full((size[1] // 12, size[0] // 12, 3), 200, np.uint8)
    page = write_page(tmp_path / "page.html", found, picture, size)
    assert page.stat().st_size < 5e6
    window = browser(page)

    def frame():
        window.wait("!waiting")
        rectangle = json.loads(window.value("JSON.stringify(map.getBoundingClientRect())"))
        return np.array([rectangle[name] for name in ("left", "top", "width", "height")])

    def at(i):
        """Where the centre of a tile is in the window."""
        left_top = frame()[:2]
        scale, x, y = json.loads(window.value("map.dataset.view"))
        return left_top + found.obsm["spatial"][i] * scale + (x, y)

    def readout():
        return json.loads(window.value("JSON.stringify({...at('readout').dataset})"))

    for i, gene in ((0, 0), (66 * 40 + 13, 7), (5675, 49)):
        window.value(f"document.querySelector('[data-gene=\"{gene}\"]').click()")
        window.click(*at(i))
        shown = readout()
        assert shown["tile"] == found.obs_names[i]
        assert np.float32(shown["value"]) == found.X[i, gene]
    # colours: what is seen at a tile is its value, and another tile has another colour
    window.value("at('unfamiliar').click(); at('opacity').value = 100; draw(); map.blur()")
    window.mouse(5, 5, "mouseMoved")
    assert readout()["tile"] == found.obs_names[5675]  # a click keeps it
    frame()
    image, values = window.pixels(), found.X[:, 49].astype(float)
    low, high = np.percentile(values, (1, 99))
    for i in range(70, 5600, 501):
        x, y = np.floor(at(i)).astype(int)
        color = 255 * np.array(colormaps["cividis"]((values[i] - low) / (high - low))[:3])
        assert np.abs(image[y, x] - color).max() < 4
    # zooming with the wheel keeps the place under the pointer
    pointer = np.round(at(2000))
    before = at(2000) - pointer
    window.mouse(*pointer, "mouseWheel", deltaX=0, deltaY=-800)
    np.testing.assert_allclose(at(2000) - pointer, before * np.exp(1.2), atol=0.1)
    # two fingers that go apart to twice their distance zoom by two, around their middle
    (x, y), before = frame()[:2] + frame()[2:] / 2, json.loads(window.value("map.dataset.view"))
    window.touch("touchStart", (x - 40, y), (x + 40, y))
    for far in (50, 60, 70, 80):
        window.touch("touchMove", (x - far, y), (x + far, y))
    window.touch("touchEnd")
    frame()
    after = json.loads(window.value("map.dataset.view"))
    assert np.isclose(after[0] / before[0], 2, rtol=0.02)
    # keys: arrows move the map under the cross, which reads the tile in the middle
    window.value("map.focus()")
    for key in ("0", "+", "+", "+", "ArrowRight"):
        window.key(key)
    middle, (scale, *start) = frame()[2:] / 2, json.loads(window.value("map.dataset.view"))
    away = np.abs(found.obsm["spatial"] - (middle - start) / scale).max(1)  # (n,) slide px
    assert away[found.obs_names.get_loc(readout()["tile"])] < 112 + 1 / scale  # within a CSS px
    # the search leaves only what fits
    window.value("at('search').value = 'g4'; at('search').dispatchEvent(new Event('input'))")
    assert window.value("buttons().length") == 10
    assert window.value("performance.getEntriesByType('resource').length") == 0  # no network


def test_names_cannot_end_the_script_and_numbers_stay_json(tmp_path):
    drawn_slide(tmp_path / "a <b>&.png")
    slide = open_slide(tmp_path / "a <b>&.png", 1.0)
    found = predict_slide(ColourModel(), slide, tmp_path / "out", [[500.0, 400.0]])
    text = (tmp_path / "out/index.html").read_text()
    assert text.count("</script>") == 2 and "<h1>Predicted expression on a &lt;b&gt;&amp;" in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [gene["name"] for gene in data["genes"]] == ["HLA/DRA", "RED", "..", "</script>"]
    assert "Only drawn tissue." in data["model"] and data["trust"][-1].endswith("diagnosis.")
    assert data["genes"][3]["pcc"] is None and data["slide"] == "a <b>&.png"
    values = np.frombuffer(base64.b64decode(data["values"]), "<f4").reshape(4, -1)
    assert np.array_equal(values.T, found.X[:, [1, 0, 2, 3]])


def test_a_page_leaves_out_the_genes_of_lowest_pcc_if_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr("peka_core.slides.page.MOST_VALUES", 2)
    drawn_slide(tmp_path / "slide.png")
    slide = open_slide(tmp_path / "slide.png", 1.0)
    predict_slide(ColourModel(), slide, tmp_path / "out", [[500.0, 400.0]])
    text = (tmp_path / "out/index.html").read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert [gene["name"] for gene in data["genes"]] == ["HLA/DRA", "RED"] and data["left_out"] == 2
