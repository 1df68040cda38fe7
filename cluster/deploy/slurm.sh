#!/usr/bin/env bash
# A grid script on the nodes of a Slurm job: a Ray head on the first node, workers on the others, then the script.
#
#     sbatch cluster/deploy/slurm.sh experiments/full_grid.py --results /shared/results/full
#
# Run it from the repository, with the environment that DiffUp is installed in active. Results and data lie on a file
# system that all nodes mount. Submit it again after a time limit or a preemption: what is finished is not done again.
#SBATCH --job-name=diffup
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

if [ "$#" -eq 0 ]; then
  echo "usage: sbatch $0 SCRIPT [ARGUMENT …]" >&2
  exit 2
fi

port=${DIFFUP_RAY_PORT:-6379}
cpus=${SLURM_CPUS_PER_TASK:-1}
# Slurm runs a copy of this file from a folder of its own: the others are where the job was submitted.
# shellcheck source=cluster/deploy/common.sh
source "${SLURM_SUBMIT_DIR:-.}/cluster/deploy/common.sh"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=${DIFFUP_HEAD_IP:-$(srun --nodes=1 --ntasks=1 -w "$head" hostname --ip-address | awk '{print $1}')}
read -r -a options <<<"${DIFFUP_RAY_OPTIONS:-}" # more for every `ray start`

# The dashboard, which takes jobs, is reached through a tunnel only: ssh -L 8265:127.0.0.1:8265 HEAD
srun --nodes=1 --ntasks=1 -w "$head" ray start --head --block --node-ip-address="$address" --port="$port" \
  --dashboard-host=127.0.0.1 --num-cpus="$cpus" "${options[@]}" &
started+=("$!")
sleep "${DIFFUP_RAY_HEADSTART:-10}"
kill -0 "${started[0]}" 2>/dev/null || { echo "the Ray head on $head ended at once; its words are above" >&2; exit 1; }
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 -w "$node" ray start --block --address="$address:$port" --num-cpus="$cpus" "${options[@]}" &
  started+=("$!")
done

export RAY_ADDRESS="$address:$port"
until_joined "${#nodes[@]}" "${DIFFUP_RAY_PATIENCE:-300}"
run "$@"
