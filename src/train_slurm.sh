#!/usr/bin/env bash
#SBATCH --job-name=carvana --nodes=2 --ntasks-per-node=1 --gpus-per-node=4 --cpus-per-task=32
#SBATCH --time=12:00:00 --requeue --open-mode=append
#SBATCH --signal=TERM@120
# sbatch src/slurm.sh recipe=carvana fold=0        from the root of the repository, on a disk that
# all machines see. Two minutes before its time is over it takes a snapshot; put into the queue
# again, it goes on.
set -euo pipefail
source src/environment.sh
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # else a machine that was started again is not met
exec srun "$PYTHON" -m torch.distributed.run --nnodes "$SLURM_NNODES" \
  --nproc-per-node "${GPUS:-gpu}" --max-restarts 3 --rdzv-backend c10d \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$first:29400" src/train.py resume=true "$@"
