#!/bin/bash
#SBATCH --account=proj-a
#SBATCH --partition=gpu
#SBATCH --time=04:00:00
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --gres=gpu:h100:8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --job-name=train.e-1
#SBATCH --no-requeue
#SBATCH --output=launch.log
#SBATCH --open-mode=append
#SBATCH --export=NONE

# Task 'train' of experiment e-1, made by gemma-launcher.
# shellcheck disable=SC1091,SC2317 # environment.sh lies beside it; functions are called by traps

unset SLURM_EXPORT_ENV # --export=NONE is for this script; the ranks get what is set here
cd /scratch/alice/jobs/experiments/e-1/train || exit
log=$PWD/launch.log seen=$(wc -c <launch.log)
# Slurm writes there why it ends the job before it sends TERM, to the ranks a moment earlier than to this script.
why() { tail -c "+$((seen + 1))" "$log" | grep -ao "JOB $SLURM_JOB_ID ON .* CANCELLED AT .*"; }
finish() { # STATUS REASON: for good
    trap '' TERM
    rm -f environment.sh secrets.json
    printf '%s\n' "$1" "$2" >.ended && mv .ended ended
    exit "$1"
}
ended() {
    case $(why) in
    *"TIME LIMIT"* | *"NODE FAIL"* | *PREEMPT*) finish 143 "no-requeue $(why)" ;;
    *) finish 143 cancelled ;;
    esac
}
trap ended TERM
restart=${SLURM_RESTART_COUNT:-0}
[ "$restart" -eq 0 ] || echo "--- started again ($restart) on $SLURM_JOB_NODELIST"
echo "$SLURM_JOB_ID $restart $(date +%s) $SLURM_JOB_NODELIST" >>started
lines=$(wc -l <launch.log)
rm -f ended stop saved result.json rank_*.failure.json rank_*.stacks

launch() {
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    address=$(getent ahostsv4 "$first" | awk '!/^127\./ { print $1; exit }')
    set -- "${address:-$first}" "$restart" # names that the next line may set to something else
    . ./environment.sh
    export MASTER_ADDR="$1" MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000)) GEMMA_LAUNCHER_RESTART="$2"
    : "${MASTER_ADDR:?is empty: the first node has no name}"
    export SRUN_CPUS_PER_TASK=96
    exec srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --kill-on-bad-exit=1 -- \
        python3 -m torch.distributed.run --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint="$MASTER_ADDR:$MASTER_PORT" --rdzv-id="$SLURM_JOB_ID.$GEMMA_LAUNCHER_RESTART" /scratch/alice/jobs/packages/0000000000000000/launcher/worker.py "$PWD/task.json"
}
launch &
while [ -n "$(jobs -r)" ]; do wait "$!"; done # a signal ends a wait
wait "$!"; status=$?
# The status of the rank that failed first, and not of those that srun ended for it, which it says as well.
first=$(tail -n "+$((lines + 1))" launch.log | sed -n '/^srun: error: .*: tasks* [0-9,-]*: /{s/.* exit code \([0-9]*\)$/\1/p;q}')
[ "$status" -eq 0 ] || status=${first:-$status}
# Where Slurm ends the job, TERM is on its way, whatever srun says: where a node fails, it says 0.
until state=$(squeue -h -j "$SLURM_JOB_ID" -o %T); [ "${state:-RUNNING}" = RUNNING ]; do sleep 1; done
[ "$status" -ne 0 ] || finish 0 exit
finish "$status" exit
