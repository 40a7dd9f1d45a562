#!/bin/bash
%%directives

# %%about
unset SLURM_EXPORT_ENV # --export=NONE is for this script; the ranks get what is set here
cd %%folder || exit
log=$PWD/launch.log
%%array
retries=%%retries
finish() { # STATUS REASON: over for good
    rm -f environment.sh secrets.json
    printf '%s\n' "$1" "$2" >.ended && mv .ended ended
    exit "$1"
}
note() { echo "$(date +%s) $1 $(cat metrics.jsonl 2>/dev/null | wc -c)" >>requeues; }
spent() { [ "$(grep -cE ' (failure|time-limit|node-failure) ' requeues)" -gt "$retries" ]; }
stuck() { # three starts in a row, and not a step
    awk '$2 !~ /^(preempted|requeued)$/ { n = $3 == last + 0 ? n + 1 : 0; last = $3 } END { exit n < 3 }' requeues
}
again() { # STATUS REASON: Slurm starts the job once more, if that may help
    [ ! -e cancel ] || finish 143 cancelled
    note "$2"
    if spent; then finish "$1" "%%last"; fi
    if stuck; then finish "$1" "crash-loop: three starts without a step"; fi
    trap '' TERM # which comes with the requeue
    scontrol requeue "$SLURM_JOB_ID" || finish "$1" "no-requeue: after $2, Slurm does not start it again"
    exit "$1"
}
ended() { # on TERM; Slurm has written why into the log
    trap '' TERM
    case $(tail -c "+$((seen + 1))" "$log" | grep -a " JOB $SLURM_JOB_ID ON .* CANCELLED AT ") in
    *"TIME LIMIT"*) again 143 time-limit ;;
    *"NODE FAIL"*) by_slurm=node-failure ;;
    *PREEMPT* | *REQUEUE*) by_slurm=preempted ;;
    *) finish 143 cancelled ;;
    esac
    [ "$retries" -gt 0 ] || finish 143 "cancelled: $by_slurm"
    note "$by_slurm"
    exit 143
}

touch started requeues
seen=$(wc -c <"$log")
trap ended TERM
%%warning
[ "$(grep -c "^$SLURM_JOB_ID " started)" -eq "$(wc -l <requeues)" ] || note node-failure
echo "$SLURM_JOB_ID ${SLURM_RESTART_COUNT:-0} $(date +%s) $SLURM_JOB_NODELIST" >>started
if spent; then finish 1 "out-of-retries: a node failed"; fi
rm -f ended stop saved result.json rank_*.failure.json rank_*.stacks

launch() {
    . ./environment.sh
    export GEMMA_LAUNCHER_RESTART="${SLURM_RESTART_COUNT:-0}"
    first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    address=$(getent ahostsv4 "$first" | awk '!/^127\./ { print $1; exit }')
    export MASTER_ADDR="${address:-$first}" MASTER_PORT=$((20000 + SLURM_JOB_ID % 12000))
    : "${MASTER_ADDR:?is empty: the first node has no name}"
    %%setup
    exec srun %%srun \
        %%command
}
launch &
srun=$!
while [ -n "$(jobs -r)" ]; do wait "$srun"; done # a trap ends a wait
wait "$srun"
status=$?
if [ "$status" -eq 0 ]; then finish 0 exit; fi
if [ -e stop ] && [ -e saved ]; then again "$status" time-limit; fi
%%failed
