"""Known vulnerabilities of the pinned packages: ``python release/audit.py``, part of ``make check``.

Asks OSV (https://osv.dev) through pip-audit. Where the service cannot be reached, that is said and nothing fails.
"""

import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
TOOLS = ROOT / ".venv" / "release"
SERVICE = "https://api.osv.dev/v1/query"
PATIENCE = 5
"""Seconds that the service has to answer."""


def main() -> int:
    """Return the exit code: 0, or that of pip-audit if it finds something."""
    if why := unreachable(SERVICE):
        print(f"Vulnerabilities were not checked: {SERVICE} cannot be reached ({why}).")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "pins.txt")
        pins.write_text("\n".join(pinned(CONSTRAINTS.read_text(encoding="utf-8"))) + "\n")
        options = [
            "--no-deps",
            "--disable-pip",
            "--vulnerability-service",
            "osv",
            "--progress-spinner",
            "off",
        ]
        return subprocess.run([tools(), "-m", "pip_audit", "--requirement", str(pins), *options]).returncode


def unreachable(address: str) -> str | None:
    """Return why a service does not answer; None if it does, whatever it says."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, data=b"{}"), timeout=PATIENCE).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except OSError as error:
        return str(getattr(error, "reason", error))
    return None


def pinned(text: str) -> list[str]:
    r"""Return the pins that count for this version of Python.

    Examples
    --------
    >>> pinned("numpy==2.0 ; python_version < '3'\n# a comment\nnumpy==2.4 ; python_version >= '3'")
    ['numpy==2.4']
    """
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pins = [Requirement(line) for line in lines if line]
    return [f"{pin.name}{pin.specifier}" for pin in pins if pin.marker is None or pin.marker.evaluate()]


def tools() -> str:
    """Return the Python of an environment that has pip-audit, made if it is not there."""
    python = TOOLS / "bin" / "python"
    if not python.exists():
        venv.create(TOOLS, with_pip=True)
    install = [
        str(python),
        "-m",
        "pip",
        "install",
        "--quiet",
        "-r",
        str(ROOT / "release" / "requirements.txt"),
    ]
    subprocess.run(install, check=True)
    return str(python)


if __name__ == "__main__":
    sys.exit(main())
