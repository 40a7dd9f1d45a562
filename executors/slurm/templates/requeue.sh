note() { echo "$(date +%s) $1 $(stat -c %s metrics.jsonl 2>/dev/null || echo 0)" >>requeues; }
hopeless() { # too many ends, or three starts in a row without a step
    awk '$2 != "preempted" { ends++; same = $3 == size + 0 ? same + 1 : 0; size = $3 } END {
        if (ends > %%retries) print "out-of-retries"; else if (same > 2) print "crash-loop"; else exit 1 }' requeues
}
again() { # STATUS REASON: have it start once more, if that may help
    note "$2"
    [ ! -e cancel ] || finish "$1" cancelled
    if reason=$(hopeless); then finish "$1" "$reason $2"; fi
    trap '' TERM # which comes with the requeue
    scontrol requeue "%%job" || finish "$1" "no-requeue $2"
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
