#!/usr/bin/env bash
# A grid script on a Ray cluster of several nodes, all on this machine and on 127.0.0.1: to try things out.
#
#     cluster/deploy/loopback.sh experiments/quickstart.py --select shots=1
#
# DIFFUP_NODES (3) nodes of DIFFUP_NODE_CPUS (1) CPUs; everything that it starts ends with it.
set -euo pipefail

if [ "$#" -eq 0 ]; then
  echo "usage: $0 SCRIPT [ARGUMENT …]" >&2
  exit 2
fi

nodes=${DIFFUP_NODES:-3}
cpus=${DIFFUP_NODE_CPUS:-1}
scratch=$(mktemp -d /tmp/dl-XXXXXX) # short: Ray's sockets lie below it
# shellcheck source=cluster/deploy/common.sh
source "$(dirname "$0")/common.sh"

free_port() {
  python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# start NAME OPTION …: a node, waited for: two that start at once may choose the same ports.
start() {
  local log="$scratch/$1.log"
  ray start --block --node-ip-address=127.0.0.1 --num-cpus="$cpus" --object-store-memory=100000000 \
    --dashboard-agent-listen-port="$(free_port)" "${@:2}" >"$log" 2>&1 &
  started+=("$!")
  for _ in $(seq 120); do
    grep -qs 'Ray runtime started' "$log" && return
    sleep 0.5
  done
  echo "node $1 did not start:" >&2
  cat "$log" >&2
  exit 1
}

port=$(free_port)
start head --head --port="$port" --include-dashboard=false --temp-dir="$scratch"
for ((node = 1; node < nodes; node++)); do
  start "node$node" --address="127.0.0.1:$port"
done

export RAY_ADDRESS="127.0.0.1:$port"
until_joined "$nodes" 90
run "$@"
