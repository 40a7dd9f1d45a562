# The experiment is made beside its place, and moved there when it is whole.
# $1: the folder of all; $2: the experiment; $3: what is placed, as a digest; $4: bytes of the archive on stdin;
# $5: the digest of our own packages; then name and digest of each copy of code.
top=$1
experiment=$1/experiments/$2
placed=$3
size=$4
own=$5
shift 5
if [ -e "$experiment" ]; then
    [ "$(cat "$experiment/.placed" 2>/dev/null)" = "$placed" ] && echo end && exit
    echo "$experiment is there already, with other tasks in it" >&2
    exit 67
fi
scratch=$top/experiments/.${experiment##*/}.$$.part
ours=$top/packages/.$own.$$.part
trap 'rm -rf "$scratch" "$ours"' EXIT
trap 'exit 1' HUP PIPE TERM INT
mkdir -p "$top/experiments" "$top/packages" || exit 67
(umask 077 && mkdir "$scratch" && cat >"$scratch/tar") || exit 67
if [ "$(wc -c <"$scratch/tar")" -ne "$size" ]; then
    echo "it broke off" >&2
    exit 66
fi
new=$scratch/new
mkdir "$new" && tar -xzmf "$scratch/tar" -C "$new" || exit 67
while [ $# -gt 0 ]; do
    mkdir "$new/$1" && tar -xzmf "$top/packages/$2.tar.gz" -C "$new/$1" || exit 67
    shift 2
done
if [ ! -d "$top/packages/$own" ]; then
    mkdir "$ours" && tar -xzmf "$top/packages/$own.tar.gz" -C "$ours" || exit 67
    # Into the folder that another launcher has made meanwhile, mv moves it; it is taken away there.
    mv "$ours" "$top/packages/$own" && rm -rf "$top/packages/$own/.$own.$$.part"
fi
echo "$placed" >"$new/.placed" || exit 67
mv "$new" "$experiment" && rm -rf "$experiment/new"
echo end
