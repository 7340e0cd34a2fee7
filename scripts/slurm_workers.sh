#!/usr/bin/env bash
# Rollout workers of a streamed run (docs/streamrl.md) as a SLURM job of their own, beside that of the trainer:
#
#   sbatch --nodes=5 --ntasks-per-node=2 --gpus-per-task=4 scripts/slurm_workers.sh orz-32b-stream tcp://HEAD:29700 [key=value ...]
#
# A task is a worker. The trainer must have begun, for its token lies in the run's folder; workers end when it ends. One
# that dies is not missed: its work goes to another, so one bad exit does not end the job.
#SBATCH --job-name=stepstack-workers
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: sbatch --nodes=N scripts/slurm_workers.sh CONFIG tcp://HEAD:PORT [key=value ...]" >&2
  exit 2
fi
cd "$SLURM_SUBMIT_DIR"
config=$1
address=$2
shift 2
exec srun --kill-on-bad-exit=0 .venv/bin/python -m stepstack generate "$config" --connect "$address" "$@"
