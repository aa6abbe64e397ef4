# Where the data sets are; sourced by train.sh and test.sh.
# DATA_ROOT holds a folder for each key (mvtec, visa, ...); MVTEC_ROOT, VISA_ROOT, ... name single ones.

OTHERS="visa mpdd btad sdd dagm dtd headct brainmri br35h covid19 isic cvc_colondb cvc_clinicdb kvasir endo tn3k"
ANOMALYCLIP=${ANOMALYCLIP:-anomalyclip}
BACKBONE=${BACKBONE:-ViT-L-14-336}
OUTPUT=${OUTPUT:-runs/paper}

# Print the folder of a data set; say so and fail where there is none.
root_of() {
  local variable
  variable=$(tr '[:lower:]' '[:upper:]' <<<"$1")_ROOT
  local folder=${!variable:-${DATA_ROOT:+$DATA_ROOT/$1}}
  if [[ -n $folder && -d $folder ]]; then
    printf '%s\n' "$folder"
  else
    echo "skipped: $1 (${folder:-nothing} is not there; set $variable or DATA_ROOT)" >&2
    return 1
  fi
}

# Print the prompts learned on a data set: this run's own from train.sh, else the published ones of that name.
prompts_of() {
  local own=$OUTPUT/train-$1/prompts.safetensors
  if [[ -f $own ]]; then printf '%s\n' "$own"; else printf '%s\n' "$1"; fi
}
