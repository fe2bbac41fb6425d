#!/usr/bin/env bash
#SBATCH --job-name=carvana --nodes=2 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=32
#SBATCH --time=12:00:00 --requeue --open-mode=append
#SBATCH --signal=TERM@120
# sbatch src/train_slurm.sh recipe=carvana fold=0 batch_size=16 lr_reference_batch=4
# Trains on several machines. Start it from the root of the repository, on a file system that all
# machines share. It takes a snapshot two minutes before its time limit; resubmit it to resume.
set -euo pipefail
OLDPWD=$PWD # a relative PYTHON starts here
source src/environment.sh
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110 # seconds that torchrun waits for the last snapshot
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1} # srun does not inherit --cpus-per-task
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # otherwise a restarted machine cannot rejoin
exec srun "$PYTHON" -m torch.distributed.run --nnodes "$SLURM_NNODES" \
  --nproc-per-node "${GPUS:-gpu}" --max-restarts 3 --rdzv-backend c10d \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29400" src/train.py resume=true "$@"
