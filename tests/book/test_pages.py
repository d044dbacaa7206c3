"""The book in a browser, opened from files without a network (`make test-browser`)."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from browsing import open_browser, setting

from peka_core.commands.notebooks import CHAPTERS

ROOT = Path(__file__).parents[2]
BOOK = (ROOT / setting("PEKA_BOOK", "test-browser")).resolve()
PAGES = sorted(str(path.relative_to(BOOK)) for path in BOOK.rglob("[!_]*.html"))
PAGES = [name for name in PAGES if not name.startswith("_")]
WIDTHS = (1280, 390)
EXEMPT = {  # rule of axe -> a part of the element that may break it
    "aria-required-children": "citation-list"  # sphinxcontrib-bibtex's list has no listitem role
}
LOOK = """() => ({
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  widest: [...document.querySelectorAll('article *')].filter(e => !e.closest('pre, mjx-container')
    && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 99)),
  links: [...document.querySelectorAll('a[href]')].map(a => a.href),
  images: [...document.images].map(i => ({src: i.getAttribute('src'), width: i.naturalWidth,
    alt: i.getAttribute('alt'), figure: !!i.closest('article')})),
  equations: [...document.querySelectorAll('.math')]
    .filter(m => !m.querySelector('mjx-container svg')
      || m.querySelector('[data-mml-node=merror], [data-mjx-error]'))
    .map(m => m.textContent.slice(0, 60)),
})"""
AXE = """colours => axe.run({preload: false, resultTypes: ['violations'],
    rules: {'color-contrast': {enabled: colours}}}).then(found => found.violations
  .filter(v => ['serious', 'critical'].includes(v.impact))
  .flatMap(v => v.nodes.map(n => [v.id, n.html.slice(0, 200)])))"""

pytestmark = pytest.mark.browser
browser = pytest.fixture(scope="module")(open_browser)


@pytest.fixture(scope="module")
def axe() -> str:
    module = pytest.importorskip("axe_playwright_python.sync_playwright")
    return module.Axe().axe_script


class Reader:
    """Reads pages at one width, and notes what the browser complains about."""

    def __init__(self, browser, width: int, axe: str):
        self.page = browser.new_page(viewport={"width": width, "height": 900})
        self.axe, self.said = axe, []
        self.colours = width == WIDTHS[0]  # they are the same at any width, and take the most time
        self.page.on(
            "console", lambda line: line.type == "error" and self.note("console", line.text)
        )
        self.page.on("pageerror", lambda error: self.note("console", error))
        self.page.on(
            "request", lambda asked: self.local(asked.url) or self.note("request", asked.url)
        )
        self.page.route(lambda url: not self.local(url), lambda route: route.abort())

    def local(self, url: str) -> bool:
        return url.startswith(("file:", "data:", "blob:"))

    def note(self, kind: str, text) -> None:
        self.said.append(f"{kind}: {text}")

    def open(self, path: Path) -> None:
        self.page.goto(path.as_uri())
        self.page.wait_for_function("!window.MathJax || (MathJax.startup || {}).promise")
        self.page.evaluate("window.MathJax && MathJax.startup.promise.then(() => 1)")

    def faults(self, path: Path) -> list[str]:
        """All that is wrong with a page, one line each, with the name of the check first."""
        self.said = []
        self.open(path)
        seen = self.page.evaluate(LOOK)
        if seen["wide"] > 1:
            self.note("overflow", f"{seen['wide']} px, at {seen['widest'][:3]}")
        for image in seen["images"]:
            if not image["width"]:
                self.note("image", image["src"])
            alt = image["alt"] or ""
            if image["figure"] and ("_images/" in alt or len(alt.split()) < 4):
                self.note("alt", f"{image['src']} has {alt!r}")
        for equation in seen["equations"]:
            self.note("equation", equation)
        for link in sorted(set(seen["links"])):
            if link.startswith("file:") and not leads_somewhere(link):
                self.note("link", link)
        self.page.evaluate(self.axe)
        for rule, html in self.page.evaluate(AXE, self.colours):
            if EXEMPT.get(rule, "\n") not in html:
                self.note("axe", f"{rule} at {html}")
        return self.said


def leads_somewhere(link: str, ids={}) -> bool:  # noqa: B006  a cache
    """Whether a link's file exists and has an element with its fragment's name."""
    address, _, fragment = link.partition("#")
    path = Path(unquote(address.removeprefix("file://")).partition("?")[0])
    if path.suffix == ".html" and path.exists() and path not in ids:
        text = path.read_text(encoding="utf-8")
        ids[path] = {*re.findall(r'\bid="([^"]+)"', text), "", "top", "pst-primary-sidebar"}
    return path.exists() and (path not in ids or unquote(fragment) in ids[path])


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_has_no_fault(browser, axe, width, name):
    reader = Reader(browser, width, axe)
    faults = reader.faults(BOOK / name)
    reader.page.close()
    assert not faults, "\n".join(faults)


GREY = '<p style="color: #bbb; background: #fff">These words are grey.</p>'
FAULTS = {  # what is planted -> the check that must find it
    '<script>console.error("planted")</script>': "console",
    '<img src="https://example.org/a.png" alt="a picture from elsewhere">': "request",
    '<div style="width: 3000px">wide</div>': "overflow",
    '<p><a href="nowhere.html">to nowhere</a></p>': "link",
    '<p><a href="index.html#nowhere">to nowhere</a></p>': "link",
    '<img src="_images/none.png" alt="a picture that is absent">': "image",
    '<img src="_images/SOME" alt="_images/SOME">': "alt",
    '<img src="_images/SOME" alt="">': "alt",
    '<div class="math notranslate nohighlight">\\[\\nosuchmacro{x}\\]</div>': "equation",
    GREY: "axe",
}


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_each_check_finds_a_planted_fault(browser, axe, number):
    planted, check = list(FAULTS.items())[number]
    source, page = BOOK / "index.html", BOOK / f"_planted_{number}.html"
    some = next((BOOK / "_images").glob("*.png")).name
    text = source.read_text(encoding="utf-8")
    assert text.count("</article>") == 1
    page.write_text(text.replace("</article>", planted.replace("SOME", some) + "</article>"))
    reader = Reader(browser, WIDTHS[0], axe)
    try:
        faults = reader.faults(page)
    finally:
        page.unlink()
        reader.page.close()
    assert any(fault.startswith(check) for fault in faults), faults


def test_search_finds_a_word_of_the_book_and_says_when_there_is_none(browser, axe):
    reader = Reader(browser, 1280, axe)
    for words, least in (("block-affine", 1), ("xylophone", 0)):
        reader.page.goto(f"{(BOOK / 'search.html').as_uri()}?q={words}")
        reader.page.wait_for_selector("#search-results p.search-summary, #search-results ul.search")
        reader.page.wait_for_function(
            "/Search finished|did not match|Search Results/.test("
            "document.querySelector('#search-results').textContent)"
        )
        found = reader.page.locator("#search-results li a").all_inner_texts()
        assert len(found) >= least and (least or not found), found
    assert reader.said == []
    reader.page.close()


def test_all_pages_are_there():
    assert {path.stem for path in (ROOT / "notebooks").glob("[!.]*.ipynb")} == set(CHAPTERS)
    assert {f"notebooks/{name}.html" for name in (*CHAPTERS, "glossary")} <= set(PAGES)
    text = (BOOK / "api.html").read_text(encoding="utf-8")
    core = {path.stem for path in (ROOT / "peka_core").glob("*.py")} - {"__init__", "__main__"}
    assert {name for name in core if f'id="module-peka_core.{name}"' not in text} == set()


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_solutions_are_folded(chapter):
    notebook = (ROOT / f"notebooks/{chapter}.ipynb").read_text(encoding="utf-8")
    page = (BOOK / f"notebooks/{chapter}.html").read_text(encoding="utf-8")
    folded = r'<div class="cell [^"]*tag_solution[^"]*">\s*<details class="[^"]*hide[^"]*">'
    asked = [
        c for c in json.loads(notebook)["cells"] if "solution" in c["metadata"].get("tags", [])
    ]
    assert len(re.findall(folded, page)) == len(asked)
    assert asked or chapter == "appendix"


def test_a_link_to_the_glossary_leads_to_a_term():
    terms = set(
        re.findall(r'<section id="([^"]+)"', (BOOK / "notebooks/glossary.html").read_text())
    )
    for path in (ROOT / "notebooks").glob("[!.]*.ipynb"):
        asked = set(re.findall(r"glossary\.md#([\w-]+)", path.read_text(encoding="utf-8")))
        assert asked <= terms, (path.name, asked - terms)
