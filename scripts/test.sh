#!/usr/bin/env bash
# The paper's two tables: MVTec AD with prompts learned on VisA, and the other 16 with prompts learned on MVTec AD.
# Usage: DATA_ROOT=/data scripts/test.sh [options of anomalyclip test]
# PROMPTS_VISA and PROMPTS_MVTEC replace the prompts of train.sh or the published ones.
set -euo pipefail
source "$(dirname "$0")/sets.sh"

# Evaluate data sets with the prompts learned on $1.
evaluate() {
  local prompts name=$2
  prompts=$(prompts_of "$1")
  shift 2
  "$ANOMALYCLIP" test "$@" --backbone "$BACKBONE" --prompts "$prompts" --compare --output "$OUTPUT/test-$name"
}

both_tables evaluate "$@"
