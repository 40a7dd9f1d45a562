# Jobs come as lines, "end" after them: folder, name, id.
while IFS= read -r line && [ "$line" != end ]; do
    set -- "$@" "$line"
done
[ "$line" = end ] || exit 66

if ! queue=$(squeue -h -r -t all -u "$user" -o '%F|%K|%T|%r|%S|%N|%j' 2>&1); then
    printf '%s\n' "$queue" >&2
    exit 65
fi

# What its script has left, in a job's folder or an element's of an array.
left() {
    while [ $# -gt 0 ]; do
        if [ -s "$1/started" ]; then
            while IFS= read -r line; do
                last=$line
            done <"$1/started"
            echo " started $last"
        fi
        if [ -f "$1/ended" ]; then
            { IFS= read -r status && IFS= read -r reason; } <"$1/ended" && echo " ended $status $reason"
        fi
        shift
    done
}

names=
ids=
while [ $# -gt 2 ]; do
    name=$2
    { IFS= read -r name <"$1/submission"; } 2>/dev/null # it may have been submitted again, under another
    names="$names$name
"
    ids=$ids,$3
    echo "job $name"
    left "$1" "$1"/array_*
    shift 3
done

# Names stand last on a line: whatever is in them. Ids may be another's: a name is ours or not.
NAMES=$names
export NAMES
# shellcheck disable=SC2016
ours='
    BEGIN { count = split(ENVIRON["NAMES"], list, "\n"); for (n = 1; n < count; n++) known[list[n]] }
    { name = $0; for (n = 1; n < fields; n++) sub(/^[^|]*\|/, "", name) }
    name in known { print kind, $0 }
'
queue=$(printf '%s\n' "$queue" | awk -v fields=7 -v kind=queue "$ours")
printf '%s\n' "$queue"

# Accounting tells how those ended that the queue does not have any more, or has as ended.
forgotten=$(printf '%s\n' "$queue" | awk -F '|' '
    { name = $0; for (n = 1; n < 7; n++) sub(/^[^|]*\|/, "", name); seen[name] }
    $3 !~ /^(PENDING|CONFIGURING|RUNNING|COMPLETING|SUSPENDED|REQUEUE|RESIZING|SIGNALING|STAGE_OUT|STOPPED|SPECIAL)/ { over[name] }
    END { count = split(ENVIRON["NAMES"], list, "\n"); for (n = 1; n < count; n++) if (!(list[n] in seen) || list[n] in over) print list[n] }
')
if [ -n "$forgotten" ]; then
    if records=$(sacct -X -D -P -n -u "$user" -j "${ids#,}" -o JobID,State,ExitCode,Start,NodeList,Reason,JobName 2>&1); then
        printf '%s\n' "$records" | awk -v fields=7 -v kind=accounts "$ours"
    else
        case $records in
        *disabled*) ;;
        *) echo silent ;;
        esac
    fi
fi
echo end
