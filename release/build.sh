#!/usr/bin/env bash
# Builds what is published, and tries it where nothing of this repository is: wheel and sdist, an empty environment with the
# wheel, the demo run from there, and a bill of materials (CycloneDX) of that environment. Everything ends up in dist/.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=.venv/release python=${PYTHON:-python3}

test -x $tools/bin/python || $python -m venv $tools
$tools/bin/python -m pip install --quiet --disable-pip-version-check -r release/requirements.txt

rm -rf dist
# The wheel is built from the sdist, so that both are known to be whole.
$tools/bin/python -m build --outdir dist . > /dev/null
$tools/bin/python release/contents.py dist

empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
constraints=$PWD/constraints.txt dist=$PWD/dist tools=$PWD/$tools
cd "$empty"
$python -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check -c "$constraints" "$dist"/*.whl
venv/bin/python -m pip check
# The sdist too, in an environment of its own that sees the packages of the first.
$python -m venv from-sdist
(cd venv/lib/python*/site-packages && pwd) > "$(echo from-sdist/lib/python*/site-packages)/packages.pth"
from-sdist/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-installed "$dist"/*.tar.gz
from-sdist/bin/anomalyclip --version
test "$(venv/bin/python -c 'import anomalyclip; print(anomalyclip.__file__)')" = \
  "$empty/venv/lib/python$(venv/bin/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')/site-packages/anomalyclip/__init__.py"
venv/bin/anomalyclip demo --output demo
test "$(wc -l < demo/predictions.jsonl)" = 12
"$tools"/bin/cyclonedx-py environment --output-reproducible --of JSON -o "$dist/bill-of-materials.cdx.json" venv/bin/python
sed -i "s|file://$dist/||" "$dist/bill-of-materials.cdx.json"  # where the wheel lay on this machine
ls -l "$dist"
