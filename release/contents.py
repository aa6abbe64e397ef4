"""Compares what was built with the repository: ``python release/contents.py DIST``."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(dist: Path) -> int:
    """Return 1 if the wheel lacks a file of the package or has one too many, or the sdist lacks a source or a test."""
    tracked = set(subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines())
    package = {name.removeprefix("src/") for name in tracked if name.startswith("src/")}
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = {name for name in archive.namelist() if ".dist-info/" not in name}
        licensed = any(name.endswith("/licenses/LICENSE") for name in archive.namelist())
    with tarfile.open(sdist) as archive:
        in_sdist = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {name for name in tracked if name.startswith(("src/", "tests/")) or "/" not in name}
    wrong = [f"not in the wheel: {name}" for name in sorted(package - in_wheel)]
    wrong += [f"only in the wheel: {name}" for name in sorted(in_wheel - package)]
    wrong += [f"not in the sdist: {name}" for name in sorted(wanted - in_sdist)]
    wrong += [] if licensed else ["the wheel has no licence"]
    print("\n".join(wrong or [f"{wheel.name}: {len(in_wheel)} files; {sdist.name}: {len(in_sdist)} files"]))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
