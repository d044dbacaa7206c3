"""Which code makes a unit: a digest of the modules that its stage runs.

A number must not outlive the code that made it. So a unit's name contains this digest: after an edit of `losses.py`, or a
`git pull`, what depends on it is made again. Modules are parsed before they are hashed, so comments, docstrings, layout and
the wording of error messages change nothing. What a module imports from this package counts too, and of `stages.py` and
`workspace.py`, which only hand data on, the functions that choose or join it (`GLUE`).
"""

import ast
import functools
import hashlib
from pathlib import Path

from ..code_digest import _said, _tree, digest_of_code
from ..places import PACKAGE

TRAINED = ("alignment", "student", "targets", "teachers")
STAGES = {  # stage -> modules in which its work begins
    "teacher": ("teachers",), "embedding": ("teachers",), "hashes": ("layout.duplicates",), "alignment": TRAINED, "features": ("student", "tiles"),
    "quality": ("quality", "student", "teachers"), "umap": ("student", "teachers"), "evaluation": ("evaluation", "controls", "student"),
}  # fmt: skip


GLUE = {  # functions of modules in `WITHOUT` that decide what a stage is given, or join what it made
    "runner.stages": (
        "teacher",
        "_embedding",
        "lesson",
        "_own_targets",
        "train",
        "_embed",
        "quality",
        "space_of",
        "_wanted",
        "_predictor",
        "_filled",
        "umap",
    ),  # fmt: skip
    "runner.run": ("recipe", "split", "rows", "groups"),
}
GLUE_PUBLISHED = "f34f6de67dc7"  # their digest when runs/demo was published: as they were, they add nothing to the names of its units


def code_of(unit) -> str:
    """Twelve hex digits that name the code behind a `units.Unit`.

    The network of another encoder, or the teacher that is not asked for, has no part in it.
    """
    begin, aside = set(STAGES.get(unit.stage, ())), set()
    if unit.taught_by:
        begin |= {*TRAINED}
    if unit.taught_by == "genes":
        begin.add("protocols")  # chooses them
    if unit.teacher:
        begin.add("teachers")
    if unit.method == "oracle":
        begin |= {"drawn.oracle", "drawn.demo"}
    if not unit.teacher.startswith("scfoundation"):
        aside |= {"models.scfoundation", "models.scfoundation_network"}
    if unit.encoder.partition("@")[0] in ("mini", "random", ""):
        aside.add("models.backbones")
    made, glue = digest_of_code(frozenset(begin), frozenset(aside)), digest_of_glue()
    return (
        made
        if glue == GLUE_PUBLISHED
        else hashlib.sha256(f"{made} {glue}".encode()).hexdigest()[:12]
    )


@functools.cache
def digest_of_glue(package: Path = PACKAGE) -> str:
    """Twelve hex digits of the sha256 over the functions in `GLUE`."""
    said = []
    for module, names in GLUE.items():
        found = [
            node
            for node in ast.walk(_tree(package, module))
            if isinstance(node, ast.FunctionDef) and node.name in names
        ]
        said += [word for node in sorted(found, key=lambda node: node.name) for word in _said(node)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]


def code_of_source(name: str) -> str:
    """Twelve hex digits that name the code which builds the cohorts of a source."""
    wing = "drawn" if name == "demo" else "sources"
    return digest_of_code(frozenset({f"{wing}.{name}", "layout.writing"}))
