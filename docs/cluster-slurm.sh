#!/usr/bin/env bash
# A sweep on four nodes of a Slurm cluster: sbatch docs/cluster-slurm.sh sweeps/quickstart.yaml
# The folder from which it is submitted must be on a disk that every node sees; store/ and reports/ are made in it.
#SBATCH --job-name=ee-ray
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
set -euo pipefail
source .venv/bin/activate

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/.ray_token.$SLURM_JOB_ID # one for each job, seen by all of its nodes
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
(umask 077 && openssl rand -hex 32 > "$RAY_AUTH_TOKEN_PATH")
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300 # seconds; the default of 30 is short for cold nodes

# Starts Ray on every node, runs the command on the first, stops Ray, and ends with the command's status.
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=0 ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" -- ee-ray run "$1" --address auto
