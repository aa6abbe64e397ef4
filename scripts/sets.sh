# Folders of the data sets; sourced by train.sh and test.sh.
# DATA_ROOT has one folder per key (mvtec, visa, ...); MVTEC_ROOT, VISA_ROOT, ... set single folders.

OTHERS="visa mpdd btad sdd dagm dtd headct brainmri br35h covid19 isic cvc_colondb cvc_clinicdb kvasir endo tn3k"
ANOMALYCLIP=${ANOMALYCLIP:-anomalyclip}
BACKBONE=${BACKBONE:-ViT-L-14-336}
OUTPUT=${OUTPUT:-runs/paper}

# Print the folder of a data set; if there is none, print a message and fail.
root_of() {
  local variable
  variable=$(tr '[:lower:]' '[:upper:]' <<<"$1")_ROOT
  local folder=${!variable:-${DATA_ROOT:+$DATA_ROOT/$1}}
  if [[ -n $folder && -d $folder ]]; then
    printf '%s\n' "$folder"
  else
    echo "skipped: $1 (${folder:-its folder} does not exist; set $variable or DATA_ROOT)" >&2
    return 1
  fi
}

# Print the prompts learned on a data set: those of this run from train.sh, otherwise the published ones with that name.
prompts_of() {
  local own=$OUTPUT/train-$1/prompts.safetensors
  if [[ -f $own ]]; then printf '%s\n' "$own"; else printf '%s\n' "$1"; fi
}
