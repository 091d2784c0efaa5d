#!/usr/bin/env bash
# Tunes with N processes on this machine, one device each, then evaluates.
#
#   launch/local.sh N --config C --workdir D [--train.steps 20 ...]
#
# One process first makes what is missing of data, base model and null space. Process 0 speaks here, the others in
# D/logs (in runs/NAME/logs where D is on an object store). When one fails the others are ended, and its exit code is
# returned; SIGTERM, to this script or to one of them, lets all of them save (143).
# Variables: PYTHON (interpreter), PLATFORM (cpu, or cuda: process i takes GPU i), PORT (of the coordinator).
set -euo pipefail

processes=${1:-}
shift || true
prepare=() workdir=""
while (($#)); do
  case $1 in
    --workdir) workdir=${2:-}; shift ;;
    --workdir=*) workdir=${1#*=} ;;
    *) prepare+=("$1") ;;
  esac
  shift
done
if ! [[ $processes =~ ^[1-9][0-9]*$ ]] || [[ -z $workdir ]]; then
  echo "usage: launch/local.sh N --config C --workdir D [--section.field value ...] (N: number of processes)" >&2
  exit 2
fi
set -- ${prepare[@]+"${prepare[@]}"}

if [[ -x .venv/bin/python ]]; then default=.venv/bin/python; else default=python3; fi
python=${PYTHON:-$default}
export JAX_PLATFORMS=${PLATFORM:-cpu} JAX_NUM_CPU_DEVICES=1 OPENBLAS_NUM_THREADS=${OPENBLAS_NUM_THREADS:-1}
gems_jax() { exec "$python" -m gems_jax.cli "$@"; }

# JAX itself ends in a segmentation fault where it cannot have the port.
try='import socket, sys; s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(("", int(sys.argv[1])))'
if [[ -n ${PORT:-} ]] && ! "$python" -c "$try" "$PORT" 2>/dev/null; then
  echo "launch/local.sh: the port $PORT (variable PORT) is in use or cannot be used: choose another one, or leave it out" >&2
  exit 2
fi

(gems_jax prepare --all "$@")

port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')}
export JAX_COORDINATOR_ADDRESS=localhost:$port JAX_NUM_PROCESSES=$processes
logs=$workdir/logs
if [[ $workdir == *://* ]]; then logs=runs/${workdir##*/}/logs; fi
mkdir -p "$logs"
pids=() stopped=""
trap 'stopped=1; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
for ((i = 0; i < processes; i++)); do
  if [[ $JAX_PLATFORMS == cuda ]]; then export CUDA_VISIBLE_DEVICES=$i; fi
  if ((i)); then exec 3>"$logs/process_$i.txt" 4>&3; else exec 3>&1 4>&2; fi
  JAX_PROCESS_ID=$i gems_jax train --workdir "$workdir" "$@" >&3 2>&4 &
  pids+=($!)
done

code=0
for _ in "${pids[@]}"; do
  wait -n || { code=$?; break; }
done
if [[ -n $stopped ]]; then
  # They save together, so all of them are waited for.
  wait "${pids[@]}" || true
  exit 143
fi
if ((code == 143 || code == 130)); then
  # Told to stop, and saved; so do the others, together.
  wait "${pids[@]}" || true
  exit "$code"
fi
if ((code)); then
  # Those left wait for the one that is gone: they can neither go on nor save.
  kill -KILL "${pids[@]}" 2>/dev/null || true
  wait "${pids[@]}" 2>/dev/null || true
  echo "launch/local.sh: a process ended with code $code; what the others said is in $logs" >&2
  exit "$code"
fi
unset JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES
gems_jax evaluate --workdir "$workdir" "$@"
