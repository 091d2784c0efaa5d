#!/usr/bin/env bash
# Tunes on the GPUs of this machine, or of several machines that share a file system, then evaluates.
#
#   launch/gpu.sh --config C --mesh.fsdp 8
#   NODES=2 NODE=0 COORDINATOR=first-machine:8476 launch/gpu.sh --config C      and NODE=1 on the other machine
#
# One process a machine, with all of its GPUs. Machine 0 makes what is missing of data, base model and null space; the
# others wait for it for five minutes, so have that made before: gems-jax prepare --all --config C. Variables: WORKDIR, PYTHON (interpreter), NODES, NODE (number of this
# machine, from 0), COORDINATOR (address of machine 0 and a free port), MEMORY (share of a GPU's memory).
set -euo pipefail

workdir=${WORKDIR:-runs/gpu}
nodes=${NODES:-1}
node=${NODE:-0}
if [[ -x .venv/bin/python ]]; then default=.venv/bin/python; else default=python3; fi
python=${PYTHON:-$default}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda} XLA_PYTHON_CLIENT_MEM_FRACTION=${MEMORY:-0.92}
# Communication beside computation.
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"

if ((nodes > 1)) && [[ -z ${COORDINATOR:-} ]]; then
  echo "launch/gpu.sh: NODES=$nodes needs COORDINATOR=address:port of the first machine" >&2
  exit 2
fi
if ((node == 0)); then
  "$python" -m gems_jax.cli prepare --all "$@"
fi
cluster=()
if ((nodes > 1)); then
  cluster=(JAX_COORDINATOR_ADDRESS="$COORDINATOR" JAX_NUM_PROCESSES="$nodes" JAX_PROCESS_ID="$node")
fi
env ${cluster[@]+"${cluster[@]}"} "$python" -m gems_jax.cli train --workdir "$workdir" "$@"
if ((node == 0)); then
  "$python" -m gems_jax.cli evaluate --workdir "$workdir" "$@"
fi
