# The data sets of the paper's two tables: where they are, and how they are run; sourced by train.sh, test.sh and rivals.sh.
# DATA_ROOT has one folder per key (mvtec, visa, ...); MVTEC_ROOT, VISA_ROOT, ... set single folders.

OTHERS="visa mpdd btad sdd dagm dtd headct brainmri br35h covid19 isic cvc_colondb cvc_clinicdb kvasir endo tn3k"
ANOMALYCLIP=${ANOMALYCLIP:-anomalyclip}
BACKBONE=${BACKBONE:-ViT-L-14-336}
OUTPUT=${OUTPUT:-runs/paper}

# Print the folder of a data set; if there is none, print a message and fail.
root_of() {
  local variable
  variable=$(in_capitals "$1")_ROOT
  local folder=${!variable:-${DATA_ROOT:+$DATA_ROOT/$1}}
  if [[ -n $folder && -d $folder ]]; then
    printf '%s\n' "$folder"
  else
    echo "skipped: $1 (${folder:-its folder} does not exist; set $variable or DATA_ROOT)" >&2
    return 1
  fi
}

# Print the prompts learned on a data set: PROMPTS_VISA or PROMPTS_MVTEC, those of this run from train.sh, otherwise the
# published ones with that name.
prompts_of() {
  local variable own=$OUTPUT/train-$1/prompts.safetensors
  variable=PROMPTS_$(in_capitals "$1")
  if [[ ! -f $own ]]; then own=$1; fi
  printf '%s\n' "${!variable:-$own}"
}

# Print a name as part of a variable's.
in_capitals() {
  tr '[:lower:]-' '[:upper:]_' <<<"$1"
}

# Run both tables: `$1 LEARNED_ON NAME ROOT... --dataset KEY...` for MVTec AD and for the others, with the options after
# $1. Files that cannot be used (exit code 1) do not stop the rest; the script ends with that code.
both_tables() {
  local run=$1 ran=0 failed=0 root key
  local -a roots=() keys=()
  shift
  if root=$(root_of mvtec); then
    one_table "$run" visa mvtec "$root" --dataset mvtec "$@"
  fi
  for key in $OTHERS; do
    root=$(root_of "$key") || continue
    roots+=("$root")
    keys+=(--dataset "$key")
  done
  if ((${#roots[@]})); then
    one_table "$run" mvtec others "${roots[@]}" "${keys[@]}" "$@"
  fi
  if ((!ran)); then
    echo "no data set was found: set DATA_ROOT to the folder with the data sets (mvtec, visa, ...)" >&2
    exit 2
  fi
  exit "$failed"
}

one_table() {
  local code=0
  "$@" || code=$?
  ((code <= 1)) || exit "$code"
  if ((code == 1)); then failed=1; fi
  ran=1
}
