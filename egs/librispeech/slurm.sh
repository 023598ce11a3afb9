#!/usr/bin/env bash
# Run the LibriSpeech recipe on machines of a Slurm cluster that share this folder:
#   sbatch egs/librispeech/slurm.sh [options of run.sh and key.sub=value ...]
# Options of the cluster (partition, account, memory) go on sbatch's own command line.
#SBATCH --job-name=librispeech
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=48:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit this with sbatch, from the folder of run.sh}"

# 2,000 seconds per step, as published: about 250 for each of eight GPUs; 270 leaves room, as no utterance is split.
# Command-line arguments override these.
recipe=(./run.sh --corpus librispeech train.batch_seconds=2000 train.max_duration=270 "$@")
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun=(srun --cpus-per-task="$SLURM_CPUS_PER_TASK")  # Slurm 22.05 to 23.02 does not take this from the job
on_one=("${srun[@]}" --nodes=1 --ntasks=1 --nodelist="$first")

"${on_one[@]}" "${recipe[@]}" --stop-stage prepare --nj "$SLURM_CPUS_PER_TASK"
# A requeued job resumes from the newest checkpoint. Jobs on one machine need different ports.
"${srun[@]}" "${recipe[@]}" --nnodes "$SLURM_NNODES" --rdzv "$first:$((20000 + SLURM_JOB_ID % 20000))"
"${on_one[@]}" "${recipe[@]}" --stage average
