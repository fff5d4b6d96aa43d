#!/bin/bash
# Embeds a data set with an array job: each task computes every 16th image and writes its own file.
#
#   sbatch examples/jobs/slurm.sh
#
# A task that is preempted or whose node fails is run again (--requeue) and resumes where it was. The array's indices
# must be 0 to n - 1, n being the number after the slash below.
#SBATCH --job-name=vit-msn-embed
#SBATCH --array=0-15
#SBATCH --cpus-per-task=2
#SBATCH --mem=2G
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# SIGTERM a minute before the time is up: what is computed is saved, and the exit is clean.
#SBATCH --signal=TERM@60
set -euo pipefail

# Where images and results are, on storage that all nodes share.
DATA=${DATA:?the folder, glob, tar shards or list with the images}
RESULTS=${RESULTS:?the folder for the results}
MODEL=${MODEL:-facebook/vit-msn-small}

printf -v part '%05d' "$SLURM_ARRAY_TASK_ID"
status=0
srun npx vit-msn embed "$DATA" \
  --model "$MODEL" --batch-size 8 --num-threads "$SLURM_CPUS_PER_TASK" \
  --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" \
  --output "$RESULTS/part-$part.parquet" || status=$?

# 3: complete but for images that can't be read, which are listed in part-….parquet.errors.jsonl.
[ "$status" -eq 3 ] && exit 0
exit "$status"
