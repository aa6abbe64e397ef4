"""Every command and every Python example of the README and the docs runs as it stands there."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from anomalyclip import readers
from anomalyclip.methods import METHODS
from tests import object_store

ROOT = Path(__file__).parent.parent
_LONG = ("compare", "deploy", "few-shot", "methods", "models")
"""Pages whose commands take longest."""

PAGES = [
    pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in _LONG else [])
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
]
_BLOCK = re.compile(
    r"^(?P<before>[^\n]*)\n+```(?P<language>bash|python)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The blocks to run; one that cannot be run says why in a comment above it: <!-- not run: ... -->."""
    found = _BLOCK.finditer("\n" + page.read_text())
    return [(match["language"], match["code"]) for match in found if "<!-- not run: " not in match["before"]]


def commands(code: str) -> list[str]:
    return [
        line for line in code.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")
    ]


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """What a page registers is gone after it."""
    monkeypatch.setattr(METHODS, "_known", dict(METHODS._known))
    monkeypatch.setattr(readers, "READERS", list(readers.READERS))


@pytest.fixture
def store(page):
    """An object store on loopback, for pages that need one."""
    if not any("s3://" in code for _, code in blocks(page)):
        yield
        return
    with object_store.serve():
        yield


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_can_be_run_in_its_order(page, cli, store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    names: dict[str, object] = {}
    for language, code in blocks(page):
        if language == "python":
            exec(compile(code, f"{page.name}: {code.splitlines()[0]}", "exec"), names)
            continue
        for command in commands(code):
            words = shlex.split(command, comments=True)
            if words[0] == "anomalyclip" and not set("|<>;&*") & set(command):
                done = cli(*words[1:])
                assert done.code == 0, f"{command}\n{done.out}{done.err}"
            else:
                subprocess.run(["bash", "-euo", "pipefail", "-c", command], check=True, env=environment)


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path):
    """A process that a page starts, and whose number it keeps in a file, ends with the page."""
    yield
    for file in tmp_path.glob("*.pid"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGKILL)
