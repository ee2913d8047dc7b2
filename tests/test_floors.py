"""The house of docs/design.md: a file imports only from below itself, or from its own package."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "purestep"

# From the ground up. Within a floor, a row may import from the rows before it.
FLOORS: dict[str, list[list[str]]] = {
    "0 ground": [
        ["_checks", "_tree", "_flat"],
        ["_batches", "_config", "random", "objectives", "_structure", "precision"],
        ["updates", "draws", "metrics"],
        ["functional", "_each"],
        ["state", "initialisation"],
        ["_rerun"],
        ["remat"],
    ],
    "1 mathematics": [
        ["_line_search"],
        ["schedules", "transforms", "gradients", "_forward", "data.orders", "nonfinite"],
    ],
    "2 composition": [
        ["_accumulate", "derivatives"],
        ["step", "per_example", "optimizers", "checkpoint", "data.sources", "data.tables", "data.pipeline", "data"],
        ["sam", "lbfgs", "execution"],
    ],
    "3 shells": [["integrations", "measure"], ["laws"], ["fit"], ["demo", "_schedule_cli", "_inspect_cli"], ["cli"]],
}
ROWS = [row for rows in FLOORS.values() for row in rows]
HEIGHT = {room: height for height, row in enumerate(ROWS) for room in row}


def room_of(module: str) -> str | None:
    """The entry of the table that a module (relative to ``purestep``) belongs to; the longest prefix counts."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in HEIGHT:
            return ".".join(parts[:length])
    return None


def modules() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        found.append((name.removesuffix(".__init__"), path))
    return [(name, path) for name, path in found if name != "__init__"]


def imported(path: Path, exists) -> set[str]:
    """Modules of purestep that a file imports anywhere in it, relative to ``purestep``."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import at line {node.lineno}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if exists(inner) else str(node.module))
    return {name.removeprefix("purestep.") for name in names if name.startswith("purestep.")} | (
        {"__init__"} if "purestep" in names else set()
    )


def exists(module: str) -> bool:
    path = SOURCE.parent / Path(*module.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def violations(name: str, path: Path) -> list[str]:
    home = room_of(name)
    assert home is not None, f"{name} has no place in the house: give it a floor in tests/test_floors.py"
    wrong = []
    for other in imported(path, exists):
        target = room_of(other)
        if other == "__init__":
            if HEIGHT[home] < HEIGHT["integrations"]:
                wrong.append("purestep")
        elif target is None or (target != home and HEIGHT[target] >= HEIGHT[home]):
            same_package = name.split(".")[0] == other.split(".")[0]
            if not (same_package and target is not None and HEIGHT[target] <= HEIGHT[home]):
                wrong.append(other)
    return wrong


@pytest.mark.parametrize(("name", "path"), modules(), ids=[name for name, _ in modules()])
def test_a_file_imports_only_from_below(name, path):
    assert not violations(name, path)


def test_the_check_sees_a_violation(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from purestep.step import train_step\n")
    assert violations("gradients", bad) == ["step"]
    bad.write_text("import purestep\n")
    assert violations("state", bad) == ["purestep"]


def test_no_cycle_between_files():
    graph = {name: imported(path, exists) - {"__init__"} for name, path in modules()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join([*trail, name])}"
        if name in done or name not in graph:
            return
        for other in graph[name]:
            if other != name:
                visit(other, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_optional_dependencies_are_imported_inside_functions():
    optional = {
        "datasets",
        "pyarrow",
        "pandas",
        "PIL",
        "matplotlib",
        "tensorboard",
        "sklearn",
        "transformers",
        "skorch",
    }
    for name, path in modules():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                roots = {a.name.split(".")[0] for a in node.names} if isinstance(node, ast.Import) else set()
                if isinstance(node, ast.ImportFrom) and node.module:
                    roots = {node.module.split(".")[0]}
                assert not (roots & optional), f"{name} imports {roots & optional} at its top"
