"""Licences of everything that an installation brings: ``python release/licences.py`` writes docs/licences.md.

What is listed are the package's own requirements with all extras for users, and theirs, as installed. A licence that is
not known to allow commercial use without conditions on one's own code is refused, by name.
"""

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
DEVELOPMENT = {"dev"}
"""Extras that users do not install."""

ALLOWED = (
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "HPND",
    "ISC",
    "MIT",
    "MIT-0",
    "MIT-CMU",
    "MPL-2.0",  # conditions on its own files alone
    "PSF-2.0",
    "Python-2.0",
    "Unlicense",
    "Zlib",
)
"""As SPDX writes them."""

SPELLINGS = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license v2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "isc license": "ISC",
    "osi approved :: apache software license": "Apache-2.0",
    "mit license": "MIT",
    "the mit license (mit)": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "python software foundation license": "PSF-2.0",
    "historical permission notice and disclaimer (hpnd)": "HPND",
}
"""What packages write that do not use SPDX's names."""


def installed() -> dict[str, str]:
    """Return the licence of every package that the package and its extras bring, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [wanted for name, wanted in project["optional-dependencies"].items() if name not in DEVELOPMENT]
    found: dict[str, str] = {}
    waiting = list(needed(sum(extras, project["dependencies"]), []))
    while waiting:
        name, chosen = waiting.pop()
        if name in found:
            continue
        try:
            package = distribution(name)
        except PackageNotFoundError:
            found[name] = "not installed"
            continue
        found[name] = licence(package.metadata)
        waiting += needed(package.requires or [], chosen)
    return dict(sorted(found.items()))


def needed(requirements: list[str], extras: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield name and extras of what is required here, on this system and Python."""
    for text in requirements:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield re.sub(r"[-_.]+", "-", requirement.name).lower(), sorted(requirement.extras)


def licence(metadata: object) -> str:
    """Return a package's licence in SPDX's terms, as far as it says it."""
    get = metadata.get_all  # type: ignore[attr-defined]
    stated = (get("License-Expression") or [""])[0]
    classified = [
        line.rpartition(" :: ")[2] for line in get("Classifier") or [] if line.startswith("License ::")
    ]
    short = [line for line in get("License") or [] if len(line) < 60]
    for text in (stated, *short, " AND ".join(classified)):
        if text and text not in ("UNKNOWN", "Dual License"):
            return " AND ".join(
                SPELLINGS.get(part.strip().lower(), part.strip()) for part in text.split(" AND ")
            )
    return "not stated"


def refused(licences: dict[str, str]) -> dict[str, str]:
    """Return the packages whose licence is not known to be free for any use; of alternatives one is enough."""
    return {name: text for name, text in licences.items() if not allowed(text)}


def allowed(text: str) -> bool:
    """Tell whether a licence expression is free for any use.

    Examples
    --------
    >>> allowed("(MIT OR GPL-3.0-only) AND BSD-3-Clause"), allowed("LGPL-2.1-only"), allowed("MIT AND GPL-2.0-only")
    (True, False, False)
    """
    while inner := re.search(r"\(([^()]*)\)", text):
        text = text.replace(inner[0], "MIT" if allowed(inner[1]) else "refused")
    return any(
        all(term.partition(" WITH ")[0].strip() in ALLOWED for term in alternative.split(" AND "))
        for alternative in text.split(" OR ")
    )


def page(licences: dict[str, str]) -> str:
    """Return the page of the documentation."""
    rows = "\n".join(f"| {name} | {text} |" for name, text in licences.items())
    return f"""# Licences of dependencies

AnomalyCLIP itself is under the MIT licence. This is everything that an installation with
all extras brings, as the packages themselves state it, on Linux with the versions in `constraints.txt`. All of
them allow commercial use, and none puts conditions on your own code. The libraries inside a package's wheel have
licences of their own, which lie in the wheel; those of PyAV's wheel are under the GPL in part:
see [what lies in wheels](#what-lies-in-wheels-and-asks-for-more).

`python release/licences.py` writes this page; a test compares it with what is installed.

| package | licence |
|---|---|
{rows}
{NOTES}"""


NOTES = """
## What lies in wheels and asks for more

**PyAV** (`av`, only with the extra `[video]`). Its own code is under the BSD licence. Its wheels contain FFmpeg,
which is built as "LGPL version 3 or later" (so says its `avcodec_license()`), and the encoders x264 and x265, which
are under the GPL (version 2 or later): as a whole the wheel is under the GPL. Installing and using it puts no
condition on your code or your results. Whoever passes it on, in a product or a container image, has to keep to
these licences. AnomalyCLIP calls neither x264 nor x265: it decodes with FFmpeg's own decoders and writes VP9 with
libvpx (BSD-3-Clause). To have neither of them, build PyAV against your own FFmpeg: `pip install --no-binary av av`.
The codecs H.264 and HEVC are covered by patents in some countries, whichever software decodes them.
"""
"""What the table does not tell."""


def main() -> int:
    """Write the page; return 1 and name the packages if a licence is refused."""
    licences = installed()
    PAGE.write_text(page(licences), encoding="utf-8")
    for name, text in refused(licences).items():
        print(f"{name}: {text}")
    return bool(refused(licences))


if __name__ == "__main__":
    sys.exit(main())
