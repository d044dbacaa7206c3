"""Which module imports which: arrows point one way, and neither modules nor wings form a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "peka_core"
ALLOWED = {
    "ideas": "core training_parts layout common",
    "commands": "studies runner sources slides drawn core training_parts models downloads layout "
    "common",
    "studies": "runner sources slides drawn core training_parts models downloads layout common",
    "runner": "sources drawn core training_parts models downloads layout common",
    "sources": "slides core training_parts models downloads layout common",
    "slides": "core training_parts layout common",
    "drawn": "core training_parts models downloads layout common",
    "core": "training_parts models layout common",
    "models": "downloads layout common",
    "layout": "common",
    "downloads": "common",
    "training_parts": "models common",
    "common": "",
}
SCORING = ("protocols", "tasks", "evaluation", "head")  # a source never imports these
FREE = {"peka_core", "peka_core.__main__"}  # the doors into the package


def running(node: ast.AST):
    """All nodes of a syntax tree without those under `if TYPE_CHECKING`."""
    if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
        yield node
        for child in ast.iter_child_nodes(node):
            yield from running(child)


def graph_of(package: Path) -> dict[str, set[str]]:
    """Module -> the modules that it imports, also inside functions."""
    paths = {path: path.relative_to(package.parent).with_suffix("").parts
             for path in package.rglob("*.py")}  # fmt: skip
    names = {path: ".".join(parts).removesuffix(".__init__") for path, parts in paths.items()}
    graph = {}
    for path, parts in paths.items():
        found = set()
        for node in running(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = parts[: len(parts) - node.level] if node.level else ()
                base = ".".join([*above, *filter(None, [node.module])])
                found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        found &= set(names.values()) - {names[path], "peka_core"}
        ways = {name for name in found if any(other.startswith(f"{name}.") for other in found)}
        graph[names[path]] = found - ways  # `from x.y import name` counts for x.y and not for x
    return graph


def wing(module: str) -> str:
    """The folder of a module, or `core` for a flat file."""
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or (PACKAGE / parts[-1]).is_dir() else "core"


def complaints(graph: dict[str, set[str]]) -> list[str]:
    """Every arrow that is not allowed, and a circle between modules."""
    modules = {a: targets for a, targets in graph.items() if a not in FREE}
    wrong = []
    for a, b in ((a, b) for a, targets in modules.items() for b in sorted(targets)):
        known = wing(b) in [wing(a), *ALLOWED[wing(a)].split()]
        if not known or wing(a) == "sources" and b.split(".")[1] in SCORING:
            wrong.append(f"{a} ({wing(a)}) imports {b} ({wing(b)})")
    try:
        TopologicalSorter(modules).prepare()
    except CycleError as error:
        wrong.append(f"circle: {' -> '.join(error.args[1])}")
    return wrong


def test_every_arrow_points_one_way_and_a_planted_import_is_noticed():
    graph = graph_of(PACKAGE)
    assert "peka_core.quality" in graph["peka_core.runner.stages"]  # inside a function
    assert len(graph) > 60 and {wing(a) for a in graph if a not in FREE} == set(ALLOWED)
    assert complaints(graph) == []
    TopologicalSorter({name: found.split() for name, found in ALLOWED.items()}).prepare()  # wings
    for module, planted, word in (
        ("losses", "runner.units", "imports"),  # the core never imports the runner
        ("sources.her2st", "head", "imports"),  # a source never imports scoring
        ("losses", "alignment", "circle"),
    ):
        name = f"peka_core.{module}"
        found = complaints(graph | {name: graph[name] | {f"peka_core.{planted}"}})
        assert any(word in line and planted in line for line in found)
