#!/usr/bin/env bash
# The paper's tables 1 and 2 with all their columns: every method on every data set that is there, beside the paper's figures.
# Usage: DATA_ROOT=/data scripts/rivals.sh [options of anomalyclip compare]
# APRIL_GAN_VISA, APRIL_GAN_MVTEC, COOP_VISA and COOP_MVTEC name files that `anomalyclip train --method` wrote on that
# data set; without its file a method is left out. PROMPTS_VISA and PROMPTS_MVTEC name prompts as for test.sh.
set -euo pipefail
source "$(dirname "$0")/sets.sh"

compared=0 failed=0

# Compare all methods on data sets, with what was learned on $1; a file that cannot be used does not stop the rest.
compare() {
  local learned=$1 folder=$2 code=0 upper prompts method trained
  local -a methods
  shift 2
  upper=$(tr '[:lower:]' '[:upper:]' <<<"$learned")
  prompts=PROMPTS_$upper
  methods=(--method "anomalyclip,prompts=${!prompts:-$(prompts_of "$learned")}")
  for method in clip clip-ac winclip; do methods+=(--method "$method"); done
  for method in april-gan coop; do
    trained=$(tr '[:lower:]-' '[:upper:]_' <<<"$method")_$upper
    if [[ -n ${!trained:-} ]]; then
      methods+=(--method "$method,trained=${!trained}")
    else
      echo "left out: $method (set $trained to what it learned on $learned)" >&2
    fi
  done
  "$ANOMALYCLIP" compare "$@" "${methods[@]}" --backbone "$BACKBONE" --paper --output "$folder" || code=$?
  ((code <= 1)) || exit "$code"
  if ((code == 1)); then failed=1; fi
  compared=1
}

if root=$(root_of mvtec); then
  compare visa "$OUTPUT/rivals-mvtec" "$root" --dataset mvtec "$@"
fi

roots=() keys=()
for key in $OTHERS; do
  root=$(root_of "$key") || continue
  roots+=("$root")
  keys+=(--dataset "$key")
done
if ((${#roots[@]})); then
  compare mvtec "$OUTPUT/rivals-others" "${roots[@]}" "${keys[@]}" "$@"
fi

if ((!compared)); then
  echo "nothing was compared: set DATA_ROOT to the folder with the data sets (mvtec, visa, ...)" >&2
  exit 2
fi
exit "$failed"
