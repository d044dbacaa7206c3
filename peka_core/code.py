"""Which code makes a unit: a digest of the modules that its stage runs.

A number must not outlive the code that made it. So a unit's name contains this digest: after an edit of `losses.py`, or a
`git pull`, what depends on it is made again. Modules are parsed before they are hashed, so comments, docstrings, layout and
the wording of error messages change nothing. What a module imports from this package counts too, and of `stages.py` and
`workspace.py`, which only hand data on, the functions that choose or join it (`GLUE`).
"""

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

PACKAGE = Path(__file__).parent
AT_START = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}  # an edit during a run is not what runs
# Modules that store, fetch, check, print or start work, and can move no number. What they read is named in a unit by its own
# digest: the cohort, the weights, the teacher's files.
WITHOUT = frozenset({
    "code", "cohort_checks", "cohort_writing", "doctor", "encoder_files", "figures", "files", "hdf5", "manifest", "network", "plan", "profile", "profile_checks",
    "provenance", "run", "sources", "stages", "studies", "tables", "units", "values", "weight_files", "workspace",
})  # fmt: skip
TRAINED = ("alignment", "student", "lessons", "teachers")
STAGES = {  # stage -> modules in which its work begins
    "teacher": ("teachers",), "embedding": ("teachers",), "hashes": ("leaks",), "alignment": TRAINED, "features": ("student", "tiles"),
    "quality": ("alignment", "student", "teachers"), "umap": ("student", "teachers"), "evaluation": ("evaluation", "controls", "student"),
}  # fmt: skip


GLUE = {  # functions of modules in `WITHOUT` that decide what a stage is given, or join what it made
    "stages": (
        "teacher", "_embedding", "lesson", "_own_targets", "train", "_embed", "quality", "space_of", "_wanted", "_predictor", "_filled", "umap",
    ),  # fmt: skip
    "workspace": ("recipe", "split", "rows", "groups"),
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
        begin.add("sources.demo")
    if not unit.teacher.startswith("scfoundation"):
        aside |= {"scfoundation", "scfoundation_network"}
    if unit.encoder.partition("@")[0] in ("mini", "random", ""):
        aside.add("backbones")
    made, glue = digest_of_code(frozenset(begin), frozenset(aside)), digest_of_glue()
    return made if glue == GLUE_PUBLISHED else hashlib.sha256(f"{made} {glue}".encode()).hexdigest()[:12]


@functools.cache
def digest_of_glue(package: Path = PACKAGE) -> str:
    """Twelve hex digits of the sha256 over the functions in `GLUE`."""
    said = []
    for module, names in GLUE.items():
        found = [node for node in ast.walk(_tree(package, module)) if isinstance(node, ast.FunctionDef) and node.name in names]
        said += [word for node in sorted(found, key=lambda node: node.name) for word in _said(node)]
    return hashlib.sha256("\n".join(said).encode()).hexdigest()[:12]


def code_of_source(name: str) -> str:
    """Twelve hex digits that name the code which builds the cohorts of a source."""
    return digest_of_code(frozenset({f"sources.{name}", "cohort_writing"}))


@functools.cache
def digest_of_code(begin: frozenset[str], aside: frozenset[str] = frozenset(), package: Path = PACKAGE) -> str:
    """Twelve hex digits of the sha256 over some modules and all that they import from this package.

    Args:
        begin: modules by name within the package, `losses` or `sources.demo`.
        aside: modules that are left out although they are imported.
        package: folder of the package.

    The modules are those of this process: as they were when it started.
    """
    total = hashlib.sha256()
    for name in sorted(_closure(begin, aside, package)):
        total.update(f"{name}:{_digest(package, name)}\n".encode())
    return total.hexdigest()[:12]


def _closure(begin: Iterable[str], aside: frozenset[str], package: Path) -> set[str]:
    """The modules, and what they import, directly or not."""
    found, waiting = set(), list(begin)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [other for other in _imports(package, name) if other not in aside]
    return found


def _file(package: Path, name: str) -> Path:
    return package.joinpath(*name.split(".")).with_suffix(".py")


@functools.cache
def _tree(package: Path, name: str) -> ast.Module:
    path = _file(package, name)
    return ast.parse(AT_START.get(path) or path.read_text(encoding="utf-8"))


@functools.cache
def _imports(package: Path, name: str) -> frozenset[str]:
    """Modules of this package that a module imports, wherever in it, but for `WITHOUT`."""
    found = set()
    for node in ast.walk(_tree(package, name)):
        if isinstance(node, ast.ImportFrom) and node.level:
            above = name.split(".")[: -node.level]
            base = [*above, *(node.module.split(".") if node.module else [])]
            found |= {".".join(base), *(".".join([*base, alias.name]) for alias in node.names)}
    here = {other for other in found if other and _file(package, other).is_file()}
    own_wing = name.rpartition(".")[0]  # a source's neighbours count for a source, and for nobody else
    return frozenset(o for o in here if o not in WITHOUT and (o.partition(".")[0] not in WITHOUT or o.rpartition(".")[0] == own_wing))


@functools.cache
def _digest(package: Path, name: str) -> str:
    return hashlib.sha256("\n".join(_said(_tree(package, name))).encode()).hexdigest()


def _said(node) -> Iterator[str]:
    """What a piece of parsed code says, in words that do not depend on the version of Python."""
    if isinstance(node, list):
        yield "["
        for item in node:
            yield from _said(item)
        yield "]"
    elif isinstance(node, ast.AST):
        yield type(node).__name__
        for field, value in ast.iter_fields(node):
            if field not in ("ctx", "kind", "type_comment", "type_ignores") and not (field == "type_params" and not value):
                yield field
                yield from _said(_without_words(node, field, value))
    else:
        yield repr(node)


def _without_words(node: ast.AST, field: str, value):
    """A field without a docstring, or without the text of an error."""
    if field == "body" and isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        first = value[0] if value else None
        is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
        return value[1:] if is_text else value
    if isinstance(node, ast.Raise) and field == "exc" and isinstance(value, ast.Call):
        return value.func  # which error, not its words
    return value
