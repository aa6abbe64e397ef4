#!/usr/bin/env bash
# The paper's two trainings: prompts learned on VisA (to test MVTec AD), and on MVTec AD (to test the other 16).
# Usage: DATA_ROOT=/data scripts/train.sh [options of anomalyclip train]
set -euo pipefail
source "$(dirname "$0")/sets.sh"

trained=0
for key in visa mvtec; do
  root=$(root_of "$key") || continue
  "$ANOMALYCLIP" train "$root" --dataset "$key" --backbone "$BACKBONE" --output "$OUTPUT/train-$key" "$@"
  trained=$((trained + 1))
done
if ((trained == 0)); then
  echo "no data set was found: set DATA_ROOT to the folder with visa and mvtec" >&2
  exit 2
fi
