"""What is published: licences, pins, and whether vulnerabilities can be asked for."""

import runpy
import socket
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def script(name):
    return runpy.run_path(str(ROOT / "release" / name))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="older versions of Python need other packages")
def test_the_licences_page_lists_what_is_installed_and_all_of_it_is_free_for_any_use():
    licences = script("licences.py")
    installed = licences["installed"]()
    assert licences["refused"](installed) == {}
    assert installed["torch"].startswith("Apache-2.0")
    page = (ROOT / "docs" / "licences.md").read_text()
    assert page == licences["page"](installed), "python release/licences.py"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("MIT", True),
        ("(MIT OR GPL-3.0-only) AND BSD-3-Clause", True),
        ("Apache-2.0 WITH LLVM-exception", True),
        ("LGPL-2.1-only", False),
        ("MIT AND GPL-2.0-only", False),
        ("not stated", False),
    ],
)
def test_one_of_alternatives_must_be_free_and_every_part(text, free):
    assert script("licences.py")["allowed"](text) is free


def test_a_service_that_cannot_be_reached_is_said_and_nothing_fails(capsys):
    audit = script("audit.py")
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        audit["main"].__globals__["SERVICE"] = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert audit["main"]() == 0
    assert "Vulnerabilities were not checked: http://127.0.0.1" in capsys.readouterr().out


def test_pins_are_those_of_this_version_of_python():
    lines = [
        "numpy==2.0 ; python_version < '3'",
        "# a comment",
        "numpy==2.4 ; python_version >= '3'",
        "six==1.0",
    ]
    assert script("audit.py")["pinned"]("\n".join(lines)) == ["numpy==2.4", "six==1.0"]
