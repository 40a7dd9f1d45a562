# $1: names, $2: those of growing files, as extended regular expressions; $3: bytes of a file, $4: bytes in all.
# On stdin, with tabs: F folder; K stamp size index/name for what is here of it; then "end".
LC_ALL=C
TZ=UTC0
NAMES="^($1)\$"
GROWING="^($2)\$"
PIECE=$3
MOST=$4
export LC_ALL TZ NAMES GROWING PIECE MOST
tab='	'
set --
table=
while IFS= read -r line && [ "$line" != end ]; do
    table="$table$line
"
    case $line in
    F"$tab"*)
        folder=${line#F"$tab"}
        for place in "$folder" "$folder"/array_*; do
            [ ! -d "$place" ] || set -- "$@" "$place"
        done
        ;;
    esac
done
[ "$line" = end ] || exit 66
if [ $# -eq 0 ]; then
    echo end
    exit
fi

# shellcheck disable=SC2016
new='
    $1 == "F" { folder[$2] = count++ }
    $1 == "K" { stamp[$4] = $2; size[$4] = $3 }
    $1 == "S" && NF == 4 {
        at = match($4, /\/[^\/]*$/); place = substr($4, 1, at - 1); name = substr($4, at + 1); element = ""
        if (!(place in folder)) { at = match(place, /\/[^\/]*$/); element = substr(place, at + 1) "/"; place = substr(place, 1, at - 1) }
        if (!(place in folder)) next
        listed[folder[place]]
        if (name !~ ENVIRON["NAMES"]) next
        key = folder[place] "/" element name
        seen[key]
        if (name !~ ENVIRON["GROWING"]) {
            if ($3 != stamp[key] && $2 <= ENVIRON["MOST"] + 0) tell(0, "W", 0, $2, $3)
            next
        }
        split($3, part, " ")
        same = !(key in size) || stamp[key] == "-" || stamp[key] == part[1]
        from = same && key in size && $2 >= size[key] + 0 ? size[key] : 0
        if (key in size && from == size[key] && same && $2 == from) next
        left = $2 - from
        tell(left, key in size && (!same || from != size[key]) ? "R" : "G", from, left < ENVIRON["PIECE"] + 0 ? left : ENVIRON["PIECE"], part[1])
    }
    # A folder of which nothing is seen is out of reach: nothing of it is gone.
    END {
        for (key in stamp) {
            split(key, part, "/"); name = key; sub(/.*\//, "", name)
            if (!(key in seen) && part[1] in listed && name !~ ENVIRON["GROWING"]) { $4 = ""; tell(-1, "D", 0, 0, "-") }
        }
    }
    function tell(left, kind, from, take, now) {
        printf "%.0f\t%s\t%.0f\t%.0f\t%s\t%s\t%s\n", left, kind, from, take, now, key, $4
    }
'
find -H "$@" -maxdepth 1 -type f -exec stat -c "S$tab%s$tab%i %s %y$tab%n" {} + 2>/dev/null | {
    printf %s "$table"
    cat
} | awk -F "$tab" "$new" | sort -n | {
    total=0
    more=
    while IFS=$tab read -r left kind from take stamp key path; do
        [ "$kind" = D ] || [ -r "$path" ] || continue
        total=$((total + take))
        if [ "$total" -gt "$MOST" ] && [ "$total" -gt "$take" ]; then
            more=yes
            break
        fi
        printf '%s\t%s\t%s\t%s\t%s\n' "$kind" "$from" "$take" "$stamp" "$key"
        if [ "$take" -gt 0 ]; then
            tail -c "+$((from + 1))" "$path" | head -c "$take"
        fi
        echo
        [ "$left" -le "$take" ] || more=yes
    done
    [ -z "$more" ] || echo more
    echo end
}
