"""How `make book` builds the book: executed notebooks, pages of text, and the core's docstrings.

Nothing runs at build and nothing is fetched. The pages open from files without a network.
"""

import importlib.util
import json
import re
import shutil
from pathlib import Path

from docutils import nodes

from peka_core.commands.notebooks import CHAPTERS

HERE = Path(__file__).parent
NOTEBOOKS = HERE.parent / "notebooks"

# Sphinx takes pages from its own folder only, and does not follow links between linked folders.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(NOTEBOOKS, HERE / "notebooks", ignore=shutil.ignore_patterns(".*"))

project = "PEKA, reproduced and taught"
author = "The peka_core contributors"
extensions = [
    "myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax",
    "sphinx_copybutton", "sphinx_design", "sphinxcontrib.bibtex",
]  # fmt: skip
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
suppress_warnings = ["mystnb.unknown_mime_type"]  # a progress bar, which needs a kernel
bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

default_role = "code"  # docstrings write `name` with single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_title = project
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_js_files = ["book.js"]
html_copy_source = False
html_use_index = False  # the search is the index
html_domain_indices = False
html_show_sourcelink = False
html_show_search_summary = False  # the search would fetch pages, which files may not
html_context = {"default_mode": "light"}
html_theme_options = {
    "navbar_persistent": [],  # a second search box
    "use_download_button": False,
    "show_toc_level": 2,
}
mathjax_path = "tex-svg.js"  # one file without fonts, copied by `copy_mathjax`


def chapters() -> list[str]:
    """The notebooks that are there, in the order in which they run."""
    return [name for name in CHAPTERS if (NOTEBOOKS / f"{name}.ipynb").exists()]


def exercises(chapter: str) -> list[str]:
    """The chapter's title as a link, then the titles of its exercises."""
    cells = json.loads((NOTEBOOKS / f"{chapter}.ipynb").read_text(encoding="utf-8"))["cells"]
    prose = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    titles = re.findall(r"^#{2,4} (Exercise .*)$", prose, re.M)
    return [f"\n**[](notebooks/{chapter}.ipynb)**\n", *(f"- {title}" for title in titles)]


def fill_pages(app, name, source):
    """A line CHAPTERS becomes the table of contents, a line EXERCISES their titles by chapter."""
    listed = [f"notebooks/{chapter}" for chapter in chapters()]
    lines = {"CHAPTERS": listed, "EXERCISES": sum(map(exercises, chapters()), [])}
    for word, those in lines.items():
        source[0] = source[0].replace(f"\n{word}\n", "\n" + "\n".join(those) + "\n")


def name_boxes(app, doctree):
    """Quotes that start with "In the paper." or "Your tissue." become boxes with that title."""
    for quote in list(doctree.findall(nodes.block_quote)):
        first = next(iter(quote.findall(nodes.strong)), None)
        title = first.astext().rstrip(".") if first else ""
        if title in ("In the paper", "Your tissue"):
            kind = {"In the paper": "seealso", "Your tissue": "tip"}[title]
            first.parent.remove(first)
            box = nodes.admonition("", nodes.title("", title), *quote.children, classes=[kind])
            quote.replace_self(box)


def copy_mathjax(app, error):
    """MathJax for the pages, from the wheel sphinx-mathjax-offline."""
    if not error and app.builder.name == "html":
        wheel = importlib.util.find_spec("sphinx-mathjax-offline").submodule_search_locations[0]
        shutil.copy(Path(wheel) / "static/mathjax/tex-svg.js", Path(app.outdir) / "_static")


def setup(app):
    """Connect the three functions above to the build."""
    app.connect("source-read", fill_pages)
    app.connect("doctree-read", name_boxes)
    app.connect("build-finished", copy_mathjax)
