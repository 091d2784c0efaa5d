#!/usr/bin/env bash
# Tunes on a Cloud TPU slice, through queued resources.
#
#   launch/tpu_vm.sh create                           ask for the slice and wait until it is there
#   launch/tpu_vm.sh setup                            this commit and its pinned packages, on every worker
#   launch/tpu_vm.sh run    --config C --workdir D    data, base model, null space; then train on all workers
#   launch/tpu_vm.sh resume --config C --workdir D    run; after a preemption create, set up and run again
#   launch/tpu_vm.sh delete                           give everything back
#   launch/tpu_vm.sh --dry-run COMMAND ...            print every command, run none
#
# Disks go with a preempted slice, and the workers of a large one save one checkpoint together: resume needs a --workdir
# that stays, and that all workers reach. That is a bucket (gs://BUCKET/NAME), or a folder below runs/ with
# SHARED=ADDRESS:/EXPORT (Filestore, or any NFS server that the slice reaches), which is mounted as runs/ on every worker.
# Without SHARED every worker makes data, base model and null space on its own disk, again after a preemption; a folder of
# a model that is no one's to make must be on SHARED. Needs gcloud, logged in, and git.
set -euo pipefail

NAME=${NAME:-gems-jax}                          # of the queued resource and of its node
ZONE=${ZONE:-us-west4-a}
PROJECT=${PROJECT:-}                            # default: that of gcloud's configuration
ACCELERATOR=${ACCELERATOR:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}         # the machines' software, by the kind of TPU
SPOT=${SPOT:-1}                                 # 1: cheap and preemptible; 0: not
SHARED=${SHARED:-}                              # ADDRESS:/EXPORT of an NFS server
PREPARE=${PREPARE:-$([[ -n $SHARED ]] && echo 0 || echo all)}  # workers that make data, base model and null space
POLL=${POLL:-30}                                # seconds between looks at the queue
ATTEMPTS=${ATTEMPTS:-20}                        # slices that resume asks for at most
PYTHON=${PYTHON:-3.11}                          # version on the workers, whose own may be older

dry=""
if [[ ${1:-} == --dry-run ]]; then dry=1; shift; fi
command=${1:-}
shift || true
location=(--zone "$ZONE" --quiet)
if [[ -n $PROJECT ]]; then location+=(--project "$PROJECT"); fi

say() { printf '%s\n' "$*" >&2; }

do_it() {
  if [[ -n $dry ]]; then printf '%q ' "$@"; printf '\n'; else "$@"; fi
}

queue() { do_it gcloud compute tpus queued-resources "$@" "${location[@]}"; }

on() { # WORKERS COMMAND
  do_it gcloud compute tpus tpu-vm ssh "$NAME" "${location[@]}" --worker "$1" --command "$2"
}

state() {
  if [[ -n $dry ]]; then
    queue describe "$NAME" --format 'value(state.state)' >&2
    echo ACTIVE
  else
    queue describe "$NAME" --format 'value(state.state)' || echo GONE
  fi
}

create() {
  local spot=() now
  if [[ $SPOT == 1 ]]; then spot=(--spot); fi
  queue create "$NAME" --node-id "$NAME" --accelerator-type "$ACCELERATOR" --runtime-version "$RUNTIME" \
    ${spot[@]+"${spot[@]}"}
  while now=$(state); [[ $now != ACTIVE ]]; do
    case $now in FAILED | SUSPENDED | GONE) say "launch/tpu_vm.sh: the slice is $now"; return 1 ;; esac
    say "$NAME: $now"
    sleep "$POLL"
  done
}

setup() {
  local archive
  archive=$(mktemp -d)/gems_jax.tar.gz
  do_it git archive --format tar.gz --output "$archive" HEAD
  do_it gcloud compute tpus tpu-vm scp "$archive" "$NAME:gems_jax.tar.gz" "${location[@]}" --worker all
  on all "mkdir -p gems_jax/runs && tar xzf gems_jax.tar.gz -C gems_jax && cd gems_jax &&
    python3 -m pip install --quiet --user uv && ~/.local/bin/uv venv --quiet --clear --python $PYTHON .venv &&
    ~/.local/bin/uv pip install --quiet --python .venv/bin/python --constraint requirements.txt \
      --editable '.[train,gcs]' 'jax[tpu]'"
  if [[ -n $SHARED ]]; then
    on all "mountpoint -q gems_jax/runs || { sudo apt-get install --quiet --yes nfs-common &&
      sudo mount -t nfs $(printf '%q' "$SHARED") gems_jax/runs && sudo chmod a+rwx gems_jax/runs; }"
  fi
  rm -rf "${archive%/*}"
}

workdir_of() {
  local word skip="" where=""
  for word in "$@"; do
    if [[ -n $skip ]]; then skip="" where=$word; continue; fi
    case $word in --workdir) skip=1 ;; --workdir=*) where=${word#*=} ;; esac
  done
  printf '%s' "$where"
}

run() {
  local options prepared=() word skip="" where
  where=$(workdir_of "$@")
  for word in "$@"; do # the work directory is for train alone
    if [[ -n $skip ]]; then skip=""; continue; fi
    case $word in --workdir) skip=1 ;; --workdir=*) ;; *) prepared+=("$word") ;; esac
  done
  case $where in
    "") say "launch/tpu_vm.sh: give --workdir D"; return 2 ;;
    gs://* | runs/*) ;;
    *://*) say "launch/tpu_vm.sh: --workdir $where: workers save one checkpoint together on gs:// alone"; return 2 ;;
    *) if [[ -n $SHARED ]]; then
         say "launch/tpu_vm.sh: --workdir $where must lie below runs/, where $SHARED is mounted"
         return 2
       fi ;;
  esac
  options=$(printf '%q ' ${prepared[@]+"${prepared[@]}"})
  # One machine of a slice has no TPU of its own to work with.
  on "$PREPARE" "cd gems_jax && JAX_PLATFORMS=cpu .venv/bin/gems-jax prepare --all $options" || return
  options=$(printf '%q ' "$@")
  on all "cd gems_jax && .venv/bin/gems-jax train --distributed true $options"
}

resume() {
  local attempt now code
  if [[ -z $SHARED && $(workdir_of "$@") != gs://* ]]; then
    say "launch/tpu_vm.sh: resume needs --workdir gs://... or SHARED=ADDRESS:/EXPORT: disks go with a preempted slice"
    return 2
  fi
  for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
    # In a condition nothing stops at the first failure by itself: run does with || return.
    code=0
    run "$@" || code=$?
    if ((code == 0 || code == 2)); then return "$code"; fi
    if [[ -z $dry ]]; then sleep "$POLL"; fi # until the queue knows of it
    now=$(state)
    if [[ $now == ACTIVE ]]; then
      say "launch/tpu_vm.sh: training failed, and the slice is still there: it was no preemption"
      return 1
    fi
    say "launch/tpu_vm.sh: the slice is $now; asking for another"
    delete || true
    create
    setup
  done
  say "launch/tpu_vm.sh: $ATTEMPTS slices were preempted; run resume again to go on"
  return 1
}

delete() { queue delete "$NAME" --force; }

case $command in
  create | setup | delete) if (($#)); then say "launch/tpu_vm.sh: $command takes no options: $*"; exit 2; fi ;;
  run | resume) ;;
  *) sed -n '4,9p' "$0" >&2; exit 2 ;;
esac
"$command" "$@"
