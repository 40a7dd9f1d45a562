# $1: the folder of all. After it digests, as arguments; on stdin scripts to test: how many lines, then those; then "end".
packages=$1/packages
shift
while [ $# -gt 0 ]; do
    [ -f "$packages/$1.tar.gz" ] || echo "missing $1"
    shift
done
while IFS= read -r count && [ "$count" != end ]; do
    text=
    while [ "$count" -gt 0 ] && IFS= read -r line; do
        text="$text$line
"
        count=$((count - 1))
    done
    if said=$(printf %s "$text" | sbatch --test-only --export=NONE --chdir=/ 2>&1); then
        echo yes
    else
        silent "$said"
        echo no
    fi
    printf '%s\n' "$said" | sed 's/^/ /'
done
[ "$count" = end ] || exit 66
if partitions=$(scontrol show partition -o 2>/dev/null); then
    printf '%s\n' "$partitions"
fi
echo end
