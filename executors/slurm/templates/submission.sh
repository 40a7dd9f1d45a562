# $1: submit, find, forget, cancel or kill. $2: the folder of all. Jobs come as lines, "end" after them.
verb=$1
lock=$2/submitting
# The line may drop: what was begun is done, and the journal is written.
trap '' HUP PIPE
shift 2

while IFS= read -r line && [ "$line" != end ]; do
    set -- "$@" "$line"
done
if [ "$line" != end ]; then
    echo "the list broke off" >&2
    exit 66
fi

# All of a session's processes are one group, so that a shell that was killed counts while its sbatch goes on.
IFS= read -r stat <"/proc/$$/stat"
# shellcheck disable=SC2086
group=$(set -- ${stat##*) } && echo "$3")
token=$(uname -n):$group:$(date +%s):$$

dead() {
    case $1 in
    "$(uname -n)":*)
        rest=${1#*:}
        ! kill -0 "-${rest%%:*}" 2>/dev/null
        ;;
    *) [ -n "$(find "$lock" -mmin +30 2>/dev/null)" ] ;;
    esac
}

take_lock() {
    patience=$(($(date +%s) + 60))
    misses=0
    until ln -s "$token" "$lock" 2>/dev/null; do
        holder=$(readlink "$lock")
        if [ -z "$holder" ]; then
            # Another one's may come and go meanwhile; where none can be made at all, who only cancels goes without.
            misses=$((misses + 1))
            [ "$misses" -gt 20 ] || continue
            [ "$verb" = submit ] || return 0
            ln -s "$token" "$lock" && return
            exit 67
        elif dead "$holder" && ln -s "$token" "$lock.breaking" 2>/dev/null; then
            # One at a time, and only the lock that was seen: a new one may have taken its place.
            [ "$(readlink "$lock")" = "$holder" ] && rm -f "$lock"
            rm -f "$lock.breaking"
        elif [ "$(date +%s)" -gt "$patience" ]; then
            echo "another launcher is submitting ($holder); if it is not, remove $lock" >&2
            exit 68
        else
            find "$lock.breaking" -mmin +1 -exec rm -f {} \; 2>/dev/null
            sleep 0.1 2>/dev/null || sleep 1
        fi
    done
}

# All that the scheduler remembers of this user, asked once.
ask() {
    if [ -z "$asked" ]; then
        if ! known=$(squeue -h -t all -u "$user" -o '%F|%j' 2>&1); then
            printf '%s\n' "$known" >&2
            exit 65
        fi
        asked=yes
    fi
}

queued() {
    printf '%s\n' "$known" | NAME=$1 awk '
        { name = $0; sub(/^[^|]*\|/, "", name) } name == ENVIRON["NAME"] { id = $0; sub(/\|.*/, "", id) } END { print id }'
}

# What accounting has of a name, where the queue may have forgotten it. One that has not ended there was lost.
accounted() {
    age=$(($(date +%s) - when))
    keeps=$(scontrol show config 2>/dev/null | sed -n 's/^MinJobAge *= *\([0-9]*\).*/\1/p')
    [ "$age" -ge "$((${keeps:-0} - 30))" ] || return 0
    if records=$(sacct -X -D -P -n -u "$user" -S "now-$((age + 3600))seconds" --name="$name" -o JobID,State 2>&1); then
        id=$(printf '%s\n' "$records" | awk -F '|' '
            $2 !~ /^(PENDING|RUNNING|SUSPENDED|REQUEUED|RESIZING)/ { sub(/[_+].*/, "", $1); id = $1 } END { print id }')
    else
        case $records in
        *disabled*) ;;
        *)
            printf '%s\n' "$records" >&2
            exit 65
            ;;
        esac
    fi
}

first() {
    line=
    { IFS=' ' read -r line _ <"$1"; } 2>/dev/null
    printf %s "$line"
}

# Its name: that of the last submission, else of the next.
identify() {
    intent=$folder/submission
    if [ -f "$intent" ]; then
        { IFS= read -r name && read -r when; } <"$intent"
        return
    fi
    intent=
    past=1
    while [ -e "$folder/submission.$past" ]; do
        past=$((past + 1))
    done
    [ "$past" = 1 ] || name=$name.$past
}

search() {
    ask
    id=$(queued "$name")
    [ -n "$id" ] || id=$(first "$folder/started")
    for element in "$folder"/array_*/started; do # of which none has the folder itself
        [ -n "$id" ] || [ ! -e "$element" ] || id=$(first "$folder/job_id")
        [ -n "$id" ] || id=$(first "$element")
    done
    [ -n "$id" ] || accounted
}

# A shell does not say why it cannot write; cat does.
journal() {
    said=$({ echo "$id" | cat >"$folder/.job_id.$$" && mv -f "$folder/.job_id.$$" "$folder/job_id"; } 2>&1) || rm -f "$folder/.job_id.$$"
}

answer() {
    echo "id $1"
}

refuse() {
    echo no
    printf '%s\n' "$1" | sed 's/^/ /'
}

# The scheduler has lost it: what it left is put aside, so that the next submission is one of its own.
forget() {
    identify
    if [ -n "$intent" ]; then
        search
        if [ -z "$id" ] && ! put_aside; then
            refuse "cannot put aside what is in $folder"
            return
        fi
    fi
    answer "$id"
}

put_aside() {
    past=1
    while [ -e "$folder/submission.$past" ]; do
        past=$((past + 1))
    done
    rm -f "$folder/stop" "$folder/saved" "$folder/cancel"
    for file in job_id started requeues ended submission; do # the intent last: with it, this is begun anew
        [ ! -e "$folder/$file" ] || mv -f "$folder/$file" "$folder/$file.$past" || return
    done
}

submit() {
    if [ ! -f "$folder/job.sh" ]; then
        refuse "there is no $folder/job.sh"
        return
    fi
    id=$(first "$folder/job_id")
    if [ -n "$id" ]; then
        answer "$id"
        return
    fi
    identify
    if [ -n "$intent" ]; then
        search
        if [ -n "$id" ]; then
            journal
            answer "$id"
            return
        fi
    fi
    if [ -n "$missing" ]; then
        refuse "$missing"
        return
    fi
    rm -f "$folder/cancel"
    said=$({ printf '%s\n%s\n%s\n' "$name" "$(date +%s)" "$token" | cat >"$folder/.submission.$$" &&
        mv -f "$folder/.submission.$$" "$folder/submission"; } 2>&1) || {
        rm -f "$folder/.submission.$$"
        refuse "$said"
        return
    }
    # What can never start would wait for ever.
    said=$(sbatch --parsable --export=NONE --chdir="$folder" --job-name="$name" \
        ${ids:+"--dependency=$dependency$ids" --kill-on-invalid-dep=yes} "$folder/job.sh" 2>&1 </dev/null)
    status=$?
    id=${said##*"
"}
    id=${id%%;*}
    case $status$id in
    0*[!0-9]* | 0)
        asked=
        ask
        id=$(queued "$name")
        ;;
    0*) ;;
    *)
        silent "$said"
        rm -f "$folder/submission"
        refuse "$said"
        return
        ;;
    esac
    journal
    answer "$id"
}

find_it() {
    identify
    id=
    if [ -n "$intent" ]; then
        search
        [ -n "$id" ] || [ ! -e "$folder/ended" ] || id=$(first "$folder/job_id")
    fi
    answer "$id"
}

cancel() {
    identify
    if [ -n "$intent" ]; then
        for place in "$folder" "$folder"/array_*; do
            [ ! -d "$place" ] || { true >"$place/cancel"; } 2>/dev/null # its script starts nothing again
        done
        said=$(scancel --user="$user" --name="$name" 2>&1) || silent "$said"
        [ "$verb" = cancel ] || said=$(scancel --full --signal=KILL --user="$user" --name="$name" 2>&1) || silent "$said"
    fi
    rm -f "$folder/secrets.json" "$folder/environment.sh" || : # a disk that is read-only keeps them
    answer ""
}

# The jobs that it waits for, by now submitted; one that ended well is waited for no more, and may be forgotten.
need() {
    id=$(first "$1/job_id")
    case $dependency:$(first "$1/ended"):$id in
    afterok:0:* | afterany:[0-9]*:*) ;;
    afterok:[0-9]*:*) missing="what it needs has failed: $1" ;;
    *:) missing="what it needs was not submitted: $1" ;;
    *) ids=$ids:$id ;;
    esac
}

asked=
if [ "$verb" != find ]; then
    mkdir -p "${lock%/*}" && take_lock
    trap '[ "$(readlink "$lock")" != "$token" ] || rm -f "$lock"' EXIT
fi
while [ $# -gt 0 ]; do
    folder=$1
    name=$2
    dependency=$3
    needs=$4
    shift 4
    ids=
    missing=
    while [ "$needs" -gt 0 ]; do
        need "$1"
        shift
        needs=$((needs - 1))
    done
    case $verb in
    submit) submit ;;
    find) find_it ;;
    forget) forget ;;
    *) cancel ;;
    esac
done
echo end
