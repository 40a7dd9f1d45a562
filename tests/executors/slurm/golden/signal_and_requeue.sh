#!/bin/bash
#SBATCH --account=proj-a
#SBATCH --partition=gpu
#SBATCH --time=04:00:00
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --constraint=h100&nvme
#SBATCH --gpus-per-node=8
#SBATCH --job-name=train.e-1
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
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
note() { echo "$(date +%s) $1 $(stat -c %s metrics.jsonl 2>/dev/null || echo 0)" >>requeues; }
hopeless() { # too many ends, or three starts in a row without a step
    awk '$2 != "preempted" { ends++; same = $3 == size + 0 ? same + 1 : 0; size = $3 } END {
        if (ends > 3) print "out-of-retries"; else if (same > 2) print "crash-loop"; else exit 1 }' requeues
}
again() { # STATUS REASON: have it start once more, if that may help
    note "$2"
    [ ! -e cancel ] || finish "$1" cancelled
    if reason=$(hopeless); then finish "$1" "$reason $2"; fi
    trap '' TERM # which comes with the requeue
    scontrol requeue "$SLURM_JOB_ID" || finish "$1" "no-requeue $2"
    exit "$1"
}
ended() {
    case $(why) in
    *"TIME LIMIT"*) again 143 time-limit ;;
    *"NODE FAIL"*) note node-failure && exit 143 ;; # these two Slurm starts again by itself
    *PREEMPT* | *REQUEUE*) note preempted && exit 143 ;;
    *) finish 143 cancelled ;;
    esac
}
touch started requeues
[ ! -e cancel ] || finish 143 cancelled # while it had itself started again, and did not hear of it
[ "$(grep -c "^$SLURM_JOB_ID " started)" -eq "$(wc -l <requeues)" ] || note node-failure # it left no word
if reason=$(hopeless); then finish 1 "$reason node-failure"; fi
trap ended TERM
trap 'touch stop' USR1
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
    export SRUN_CPUS_PER_TASK=12
    exec srun --nodes=1 --ntasks=8 --ntasks-per-node=8 --kill-on-bad-exit=1 -- \
        python3 /scratch/alice/jobs/packages/0000000000000000/launcher/worker.py "$PWD/task.json"
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
if [ -e stop ] && [ -e saved ]; then again "$status" time-limit; fi
again "$status" failure
