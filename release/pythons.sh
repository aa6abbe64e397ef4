#!/usr/bin/env bash
# Tries the package with every Python from 3.10 on that is installed, without PyTorch, which has no small build for all of them:
# the sources compile, the command line starts, and an exported file gives the scores that it gave where it was made.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/anomalyclip export --backbone micro --output "$work/micro.onnx" > /dev/null
.venv/bin/anomalyclip predict src/anomalyclip/assets/demo --model "$work/micro.onnx" --output "$work/here" > /dev/null

for minor in 10 11 12 13 14; do
  python=$(ls ~/.pyenv/versions/3.$minor.*/bin/python3 2> /dev/null | tail -1 || true)
  python=${python:-$(command -v python3.$minor || true)}
  if ! "${python:-false}" -c '' 2> /dev/null; then echo "3.$minor: not installed here"; continue; fi
  "$python" -m venv "$work/$minor"
  bin=$work/$minor/bin
  "$bin"/python -m pip install --quiet --disable-pip-version-check --no-deps .
  "$bin"/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
    numpy scipy pillow filelock certifi typer rich pyyaml onnxruntime
  "$bin"/python -m compileall -q src tests benchmarks recipes
  "$bin"/anomalyclip --help > /dev/null
  "$bin"/anomalyclip predict src/anomalyclip/assets/demo --model "$work/micro.onnx" --output "$work/out-$minor" > /dev/null
  "$bin"/python - "$work/here" "$work/out-$minor" << 'END'
import json, pathlib, sys
here, there = ([json.loads(line)["pred_score"] for line in (pathlib.Path(folder) / "predictions.jsonl").open()] for folder in sys.argv[1:])
difference = max(abs(a - b) for a, b in zip(here, there, strict=True))
assert difference < 1e-4, difference
print(f"{sys.version.split()[0]}: {len(there)} pictures scored, largest difference {difference:.1g}")
END
done
