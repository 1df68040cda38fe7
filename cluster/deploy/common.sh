#!/usr/bin/env bash
# What loopback.sh and slurm.sh share; they source it. They add the processes that they start to `started`.

# A token of this cluster alone. It is in the environment only: no file, no argument and no log has it.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

started=()
# shellcheck disable=SC2317 # the trap calls it
finish() {
  trap - EXIT
  for pid in "${started[@]}"; do
    kill -TERM "$pid" 2>/dev/null || true
  done
  wait || true
  [ -z "${scratch:-}" ] || rm -rf "$scratch"
}
trap finish EXIT

# until_joined NODES SECONDS: wait until so many nodes are in the cluster of RAY_ADDRESS.
until_joined() {
  python - "$1" "$2" <<'PYTHON'
import sys
import time

import ray

wanted, patience = int(sys.argv[1]), float(sys.argv[2])
end = time.monotonic() + patience
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
while (here := sum(node["Alive"] for node in ray.nodes())) < wanted:
    if time.monotonic() > end:
        sys.exit(f"only {here} of {wanted} nodes joined within {patience:.0f} s; see the output for ray's own words")
    time.sleep(0.5)
print(f"{here} nodes: {ray.cluster_resources().get('CPU', 0):.0f} CPUs, {ray.cluster_resources().get('GPU', 0):.0f} GPUs")
PYTHON
}

# run SCRIPT [ARGUMENT …]: run it and exit with its code. A signal goes on to it; it keeps what is finished and ends.
run() {
  python "$@" &
  local script=$! code=0
  # shellcheck disable=SC2064 # the process that it is now
  trap "kill -TERM $script 2>/dev/null || true" TERM INT
  wait "$script" || code=$?
  while kill -0 "$script" 2>/dev/null; do # the wait above ends at a signal
    code=0
    wait "$script" || code=$?
  done
  exit "$code"
}
