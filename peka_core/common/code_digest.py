"""A digest of the code behind a number: of parsed modules, without comments, docstrings and layout.

The wording of errors does not count either.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from .folders import PACKAGE

# The modules as they were when this process started: an edit during a run is not what runs.
AT_START = {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}

# Wings and modules that only store, fetch, check, print or start work. They move no number, because
# a unit names what they read (cohort, weights, the teacher's files) by its own digest.
WINGS_WITHOUT_NUMBERS = {"commands", "common", "downloads", "drawn", "runner", "sources", "studies"}
WITHOUT_NUMBERS = {
    "figures",
    "layout.checks",
    "layout.hdf5",
    "layout.writing",
    "models.encoder_files",
    "models.weight_files",
}
WITHOUT = frozenset(WINGS_WITHOUT_NUMBERS | WITHOUT_NUMBERS)
WITH = frozenset({"common.device"})  # the precision in which a network computes


@functools.cache
def digest_of_code(
    begin: frozenset[str], aside: frozenset[str] = frozenset(), package: Path = PACKAGE
) -> str:
    """Twelve hex digits of the sha256 over some modules and all that they import from this package.

    Args:
        begin: modules by name within the package, `losses` or `sources.demo`.
        aside: modules that are left out although they are imported.
        package: folder of the package.

    The modules are those of this process: as they were when it started.
    """
    total = hashlib.sha256()
    for name in sorted(_closure(begin, aside, package)):
        total.update(f"{name}:{digest_of_module(name, package)}\n".encode())
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
    return frozenset(other for other in here if _counts(other, name))


def _counts(module: str, importer: str) -> bool:
    """Whether an imported module counts; those of a source's own wing count for that source."""
    if module in WITHOUT or module in WITH:
        return module in WITH
    wing = module.partition(".")[0]
    return wing not in WITHOUT or wing == importer.rpartition(".")[0]


@functools.cache
def digest_of_module(name: str, package: Path = PACKAGE) -> str:
    """Hex sha256 of one module alone, without what it imports."""
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
            if field not in ("ctx", "kind", "type_comment", "type_ignores") and not (
                field == "type_params" and not value
            ):
                yield field
                yield from _said(_without_words(node, field, value))
    else:
        yield repr(node)


def _without_words(node: ast.AST, field: str, value):
    """A field without a docstring, or without the text of an error."""
    if field == "body" and isinstance(
        node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    ):
        first = value[0] if value else None
        is_text = (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        )
        return value[1:] if is_text else value
    if isinstance(node, ast.Raise) and field == "exc" and isinstance(value, ast.Call):
        return value.func  # which error, not its words
    return value
