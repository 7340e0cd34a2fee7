#!/usr/bin/env bash
# One launcher on each node of a SLURM job:
#
#   sbatch --nodes=16 --gpus-per-node=8 scripts/slurm.sh orz-32b [key=value ...]
#
# The launcher takes rank and head address from SLURM, everything else from the config, and refuses a job whose number of
# nodes is not launch.nodes. Ten minutes before the time limit SLURM sends SIGTERM: the run saves and ends, and the same
# sbatch line goes on from there.
#SBATCH --job-name=stepstack
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --signal=TERM@600
set -euo pipefail

if [ $# -eq 0 ]; then
  echo "usage: sbatch --nodes=N scripts/slurm.sh CONFIG [key=value ...]" >&2
  exit 2
fi
cd "$SLURM_SUBMIT_DIR"
exec srun --kill-on-bad-exit=1 .venv/bin/python -m stepstack launch "$@"
