#!/bin/sh
# The first process of a virtual node: node.sh NAME ADDRESS HOSTS SLURM_CONF FROM TO, in network, host name, process and
# mount namespaces of its own. When it is killed, the kernel ends every process of the node, as a power cut would.
set -eu
hostname "$1"
# Nodes know one another by name; the machine's own file stays as it is.
mount --bind "$3" /etc/hosts
# What jobs import. Seen in here alone, so that nothing outside can delete through it, and gone with the node.
mount --bind -o ro "$5" "$6"
mount -t proc proc /proc
ip link set lo up
# The other end of this cable is put into the bridge, and this one in here, from outside.
tries=0
until ip link show eth0 >/dev/null 2>&1; do
    tries=$((tries + 1))
    [ "$tries" -lt 500 ] || exit 1
    sleep 0.02
done
ip addr add "$2/24" dev eth0
ip link set eth0 up
# Not exec: whoever is process 1 must wait for orphans, which slurmd does not.
SLURM_CONF=$4 slurmd -D -N "$1" -f "$4" &
wait
