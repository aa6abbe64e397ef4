"""The house is in order: every module has its room in CONTRIBUTING's table, and imports go up that table only."""

import ast
import re
from pathlib import Path

import pytest

import anomalyclip

PACKAGE = Path(anomalyclip.__file__).parent
TABLE = PACKAGE.parents[1] / "CONTRIBUTING.md"

BACK = {("spec.py", "loading.py"), ("spec.py", "clip/"), ("spec.py", "backbones/")}
"""The arrows that go down, both inside functions: a spec loads its detector, and asks which names are known."""


def rows():
    """The rooms of each row, from the top."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| room |"))
    found = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        found.append(re.findall(r"`([^`]+)`", line.split("|")[1]))
    return found


ROWS = rows()
HEIGHT = {room: height for height, rooms in enumerate(ROWS) for room in rooms}


def room_of(module):
    """The room of a module's file, relative to the package: its own name, or the innermost folder that has a row."""
    path = module.as_posix()
    names = [path, *(f"{parent.as_posix()}/" for parent in module.parents if parent.name)]
    return next((name for name in names if name in HEIGHT), None)


MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports_of(module):
    """The modules of the package that a module imports, wherever in it, but not for type checkers alone."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", None) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = []
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anomalyclip"):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names if alias.name.startswith("anomalyclip")]
        elif isinstance(node, ast.Constant) and re.fullmatch(r"anomalyclip(\.\w+)+:\w+", str(node.value)):
            names.append(str(node.value).partition(":")[0])  # imported by name when it is needed
    return {file for name in names if (file := _file_of(name)) is not None} - {module}


def _file_of(name):
    """The file that a dotted name is, or is in; None for the package itself, which resolves names lazily."""
    parts = name.split(".")[1:]
    while parts:
        for file in (Path(*parts).with_suffix(".py"), Path(*parts, "__init__.py")):
            if (PACKAGE / file).is_file():
                return file
        parts.pop()
    return None


def test_every_module_has_one_room_and_every_room_is_there():
    named = [room for rooms in ROWS for room in rooms]
    assert len(named) == len(set(named))
    assert [room for room in named if not (PACKAGE / room).exists()] == []
    homeless = [
        str(m) for m in MODULES if room_of(m) is None and m.name not in ("__init__.py", "__main__.py")
    ]
    assert homeless == []


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module)], ids=str)
def test_imports_go_up_the_table(module):
    room = room_of(module)
    down = {
        str(imported)
        for imported in imports_of(module)
        if (other := room_of(imported)) is not None
        and HEIGHT[other] > HEIGHT[room]
        and (room, other) not in BACK
    }
    assert down == set(), f"{module} (in {room}) imports what stands below it"


WORK = {"cli", "training", "evaluation", "engines", "predicting.py", "benchmark.py"}


@pytest.mark.parametrize("module", [module for module in MODULES if module.parts[0] in WORK], ids=str)
def test_no_call_of_the_rooms_that_work_has_twelve_arguments(module):
    """Options that go together are one value: a spec, settings."""
    tree = ast.parse((PACKAGE / module).read_text(encoding="utf-8"))
    calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    assert [node.lineno for node in calls if len(node.args) + len(node.keywords) >= 12] == []


@pytest.mark.parametrize("module", [module for module in MODULES if module.parts[0] == "cli"], ids=str)
def test_a_module_of_the_command_line_is_short(module):
    assert len((PACKAGE / module).read_text(encoding="utf-8").splitlines()) < 200
