#!/usr/bin/env bash
# The paper's tables 1 and 2 with all their columns: every method on every data set that is there, beside the paper's figures.
# Usage: DATA_ROOT=/data scripts/rivals.sh [options of anomalyclip compare]
# APRIL_GAN_VISA, APRIL_GAN_MVTEC, COOP_VISA and COOP_MVTEC name files that `anomalyclip train --method` wrote on that
# data set; without its file a method is left out. PROMPTS_VISA and PROMPTS_MVTEC name prompts as for test.sh.
set -euo pipefail
source "$(dirname "$0")/sets.sh"

# Compare all methods on data sets, with what was learned on $1.
compare() {
  local learned=$1 name=$2 method trained
  local -a methods
  shift 2
  methods=(--method "anomalyclip,prompts=$(prompts_of "$learned")")
  for method in clip clip-ac winclip; do methods+=(--method "$method"); done
  for method in april-gan coop; do
    trained=$(in_capitals "$method")_$(in_capitals "$learned")
    if [[ -n ${!trained:-} ]]; then
      methods+=(--method "$method,trained=${!trained}")
    else
      echo "left out: $method (set $trained to what it learned on $learned)" >&2
    fi
  done
  "$ANOMALYCLIP" compare "$@" "${methods[@]}" --backbone "$BACKBONE" --paper --output "$OUTPUT/rivals-$name"
}

both_tables compare "$@"
