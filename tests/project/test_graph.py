"""Which module imports which: arrows point one way, and neither modules nor wings form a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "peka_core"
ALLOWED = {
    "commands": "studies runner sources drawn core training models downloads layout common",
    "studies": "runner sources drawn core training models layout common",
    "runner": "sources drawn core training models downloads layout common",
    "sources": "core training models downloads layout common",
    "drawn": "core training models downloads layout common",
    "core": "training models layout common",
    "models": "downloads layout common",
    "layout": "common",
    "downloads": "common",
    "training": "models common",
    "common": "",
}
SCORING = {
    "protocols",
    "tasks",
    "evaluation",
    "head",
}  # a source never imports how its spots are scored
FREE = {"peka_core", "peka_core.__main__"}  # the doors into the package


def modules(package: Path) -> dict[str, Path]:
    """Every module below a package by its dotted name."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path, known: dict[str, Path]) -> set[str]:
    """What a module imports of this package, inside functions too, without TYPE_CHECKING."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {id(inner) for part in node.body for inner in ast.walk(part)}
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
    return {name for name in found if name in known and name not in (module, "peka_core")}


def wing(module: str) -> str:
    """The folder of a module, or `core` for a flat file."""
    parts = module.split(".")
    if len(parts) > 2 or (PACKAGE / parts[-1]).is_dir():
        return parts[1]
    return "core"


def circle(graph: dict[str, set[str]]) -> list[str]:
    """One circle of a graph, or an empty list."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def complaints(graph: dict[str, set[str]]) -> list[str]:
    """Every arrow that is not allowed, and a circle between modules or wings."""
    arrows = [(a, b) for a, targets in graph.items() if a not in FREE for b in sorted(targets)]
    wrong = [
        f"{a} ({wing(a)}) imports {b} ({wing(b)})"
        for a, b in arrows
        if wing(a) != wing(b)
        and wing(b) not in ALLOWED[wing(a)].split()
        or wing(a) == "sources"
        and b.split(".")[1] in SCORING
    ]
    wings: dict[str, set[str]] = {}
    for a, b in arrows:
        if wing(a) != wing(b):
            wings.setdefault(wing(a), set()).add(wing(b))
    circles = circle({a: graph[a] for a in graph if a not in FREE}), circle(wings)
    return wrong + [f"circle: {' -> '.join(found)}" for found in circles if found]


def graph_of(package: Path) -> dict[str, set[str]]:
    """Module -> the modules that it imports; `from x.y import name` counts for x.y alone."""
    known = modules(package)
    graph = {name: imports(name, path, known) for name, path in known.items()}
    return {
        a: {b for b in targets if not _is_only_the_way(b, targets)} for a, targets in graph.items()
    }


def _is_only_the_way(module: str, targets: set[str]) -> bool:
    """Whether a package is a target only because one of its modules was imported from it."""
    return any(other.startswith(f"{module}.") for other in targets)


def test_every_arrow_points_one_way():
    graph = graph_of(PACKAGE)
    assert len(graph) > 60 and {wing(a) for a in graph if a not in FREE} == set(ALLOWED)
    assert complaints(graph) == []


def test_a_planted_import_is_noticed():
    for module, planted, word in (
        ("losses", "runner.units", "imports"),  # the core never imports the runner
        ("sources.her2st", "head", "imports"),  # a source never imports scoring
        ("sources.her2st", "drawn.demo", "imports"),
        ("losses", "alignment", "circle"),
        ("common.errors", "common.files", "circle"),
    ):
        graph = graph_of(PACKAGE)
        graph[f"peka_core.{module}"].add(f"peka_core.{planted}")
        found = complaints(graph)
        assert any(word in line and planted in line for line in found), (module, planted, found)


def test_imports_inside_functions_count_and_those_for_type_checking_do_not(tmp_path):
    package = tmp_path / "peka_core"
    package.mkdir()
    for name in ("__init__", "a", "b", "c", "d"):
        (package / f"{name}.py").touch()
    (package / "a.py").write_text(
        "from typing import TYPE_CHECKING\nfrom . import c\nfrom .d import x\n"
        "if TYPE_CHECKING:\n    from . import b\n"
    )
    (package / "b.py").write_text("def f():\n    import peka_core.a\n")
    graph = graph_of(package)
    assert graph["peka_core.a"] == {"peka_core.c", "peka_core.d"}
    assert graph["peka_core.b"] == {"peka_core.a"}
