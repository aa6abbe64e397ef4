#!/usr/bin/env bash
# The paper's two tables: MVTec AD with prompts learned on VisA, and the other 16 with prompts learned on MVTec AD.
# Usage: DATA_ROOT=/data scripts/test.sh [options of anomalyclip test]
# PROMPTS_VISA and PROMPTS_MVTEC replace the prompts of train.sh or the published ones.
set -euo pipefail
source "$(dirname "$0")/sets.sh"

tested=0 failed=0

# Evaluate data sets with the prompts $1; files that cannot be used (exit code 1) do not stop the others.
evaluate() {
  local prompts=$1 folder=$2 code=0
  shift 2
  "$ANOMALYCLIP" test "$@" --backbone "$BACKBONE" --prompts "$prompts" --output "$folder" || code=$?
  ((code <= 1)) || exit "$code"
  if ((code == 1)); then failed=1; fi
  tested=1
}

if root=$(root_of mvtec); then
  evaluate "${PROMPTS_VISA:-$(prompts_of visa)}" "$OUTPUT/test-mvtec" "$root" --dataset mvtec --compare "$@"
fi

roots=() keys=()
for key in $OTHERS; do
  root=$(root_of "$key") || continue
  roots+=("$root")
  keys+=(--dataset "$key")
done
if ((${#roots[@]})); then
  evaluate "${PROMPTS_MVTEC:-$(prompts_of mvtec)}" "$OUTPUT/test-others" "${roots[@]}" "${keys[@]}" --compare "$@"
fi

if ((!tested)); then
  echo "no data set was found: set DATA_ROOT to the folder with the data sets (mvtec, visa, ...)" >&2
  exit 2
fi
exit "$failed"
