# What stands before every script that runs beside sbatch. POSIX sh.
LC_ALL=C
SLURM_TIME_FORMAT=%s
export LC_ALL SLURM_TIME_FORMAT
# Of a login file's: they would win over what a job asks for, or hide jobs from us.
for variable in $(env | sed -n 's/^\(\(SBATCH\|SQUEUE\|SACCT\|SCANCEL\)_[A-Z_0-9]*\)=.*/\1/p'); do
    unset "$variable"
done
# Clusters whose Slurm lies in a folder of its own name it in files that login shells alone read.
if ! command -v sbatch >/dev/null 2>&1 && command -v bash >/dev/null 2>&1; then
    PATH=$PATH:$(bash -lc 'printf "\n%s" "$PATH"' </dev/null 2>/dev/null | tail -n 1)
fi
if ! command -v sbatch >/dev/null 2>&1; then
    echo "there is no sbatch" >&2
    exit 64
fi
user=$(id -u)

# These words of a command of Slurm's say that it did not get through to the scheduler, so that nobody knows.
silent() {
    case $1 in
    *'nable to contact'* | *'imed out'* | *'onnection'* | *'onnect failure'* | *'nvalid job credential'* | *'ommunication'* | \
        *'ransport'* | *'rotocol authentication'* | *'Zero Bytes'* | *'standby mode'* | *'emporarily unable'* | *'munge'*)
        printf '%s\n' "$1" >&2
        exit 65
        ;;
    esac
}
