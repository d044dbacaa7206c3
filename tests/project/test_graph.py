"""Which module imports which: arrows point one way, and neither modules nor wings form a circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "peka_core"
ALLOWED = {
    "commands": "studies runner sources drawn core training_parts models downloads layout common",
    "studies": "runner sources drawn core training_parts models layout common",
    "runner": "sources drawn core training_parts models downloads layout common",
    "sources": "core training_parts models downloads layout common",
    "drawn": "core training_parts models downloads layout common",
    "core": "training_parts models layout common",
    "models": "downloads layout common",
    "layout": "common",
    "downloads": "common",
    "training_parts": "models common",
    "common": "",
}
SCORING = {
    "protocols",
    "tasks",
    "evaluation",
    "head",
}  # a source never imports how its spots are scored
FREE = {"peka_core", "peka_core.__main__"}  # the doors into the package


def graph_of(package: Path) -> dict[str, set[str]]:
    """Module -> the modules that it imports, inside functions too, without TYPE_CHECKING."""
    known = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        known[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    graph = {}
    for module, path in known.items():
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        checks = [
            n for n in nodes if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)
        ]
        skipped = {id(inner) for n in checks for part in n.body for inner in ast.walk(part)}
        parts = [*module.split("."), ""] if path.name == "__init__.py" else module.split(".")
        found = set()
        for node in (node for node in nodes if id(node) not in skipped):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                above = parts[: len(parts) - node.level] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        found = {name for name in found if name in known and name not in (module, "peka_core")}
        # `from x.y import name` counts for x.y, and not for the package x
        is_the_way = lambda name, found=found: any(other.startswith(f"{name}.") for other in found)
        graph[module] = {name for name in found if not is_the_way(name)}
    return graph


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
        return []
    except CycleError as error:
        return error.args[1]


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


def test_every_arrow_points_one_way():
    graph = graph_of(PACKAGE)
    assert "peka_core.quality" in graph["peka_core.runner.stages"]  # inside a function
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
