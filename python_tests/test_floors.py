"""The package has floors: no module imports itself by way of others, and none imports from a floor above its own."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "lmcleaner_ext"
FLOORS = (
    "_native _cuda _version errors files options",
    "layout digest losses audit",
    "ops",
    "optim",
    "log",
    "datasets",
    "evaluation",
    "replay",
    "curvature",
    "engine",
    "recorder",
    "unlearn",
    "installation",
    "demo",
    "cli",
    "lmcleaner_ext",  # what `import lmcleaner_ext` shows: nobody inside asks it for anything
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names.split()}


def imports() -> dict[str, set[str]]:
    """{module: the package's modules that it imports}, functions' imports included; a.b brings a, except to those who are in a."""
    files = {".".join(f.relative_to(PACKAGE.parent).with_suffix("").parts): f for f in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): file for name, file in files.items()}
    known = {*modules, "lmcleaner_ext._native", "lmcleaner_ext._cuda"}
    found: dict[str, set[str]] = {}
    for name, file in modules.items():
        package = (name if file.name == "__init__.py" else name.rpartition(".")[0]).split(".")
        asked: set[str] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                asked |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                start = package[: len(package) + 1 - node.level] if node.level else []
                base = ".".join([*start, *filter(None, [node.module])])
                asked |= {x if (x := f"{base}.{alias.name}") in known else base for alias in node.names}
        parents = {parent for module in asked for parent in _parents(module) if not f"{name}.".startswith(f"{parent}.")}
        found[name] = (asked | parents) & known
    return found


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def floor(module: str) -> int:
    return FLOOR[f"{module}.".split(".")[1] or module]


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter(imports()).prepare()  # raises CycleError, which names the circle


def test_no_module_imports_from_a_floor_above_its_own():
    upward = [(module, x) for module, asked in imports().items() for x in asked if floor(x) > floor(module)]
    assert upward == []
