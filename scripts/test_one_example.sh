#!/usr/bin/env bash
# Score one image and draw where it is anomalous.
# Usage: scripts/test_one_example.sh IMAGE [options of anomalyclip predict]
set -euo pipefail

if (($# == 0)); then
  echo "usage: $0 IMAGE [options of anomalyclip predict]" >&2
  exit 2
fi
image=$1
shift
"${ANOMALYCLIP:-anomalyclip}" predict "$image" --backbone "${BACKBONE:-ViT-L-14-336}" \
  --output "${OUTPUT:-runs/example}" --overwrite --save heatmap --save map "$@"
