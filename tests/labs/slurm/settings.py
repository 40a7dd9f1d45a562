"""The configuration files of the Slurm lab."""

from __future__ import annotations

import socket
from pathlib import Path

NODES = 4
GPUS = 8
CPUS = 64
MEMORY = 262_144  # MiB
ACCOUNTS = ("proj-a", "proj-b")

# Below the range from which the kernel takes ports for connections that go out.
CONTROLLER_PORT = 16817
DATABASE_PORT = 16819
SSH_PORT = 16022
NODE_PORT = 16818
NETWORK = "198.18.77"  # of the range for benchmarks, which is routed nowhere
BRIDGE = "gemmalab"  # the names of the cables begin with it; 15 characters at most


def address(node: int) -> str:
    """That of a node; 0 is the machine itself."""
    return f"{NETWORK}.{10 + node if node else 1}"


def slurm_conf(etc: Path, run: Path, log: Path, state: Path) -> str:
    nodes = "\n".join(
        # Debian's Slurm allows one slurmd a host name, so that each needs its own.
        f"NodeName=node{node} NodeHostname=node{node} NodeAddr={address(node)} Port={NODE_PORT} "
        f"Boards=1 SocketsPerBoard=1 CoresPerSocket={CPUS} ThreadsPerCore=1 RealMemory={MEMORY} "
        f"Gres=gpu:{GPUS} State=UNKNOWN"
        for node in range(1, NODES + 1)
    )
    return f"""\
ClusterName=lab
SlurmctldHost={socket.gethostname().partition(".")[0]}({address(0)})
SlurmctldPort={CONTROLLER_PORT}
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
# A job that is requeued starts again no sooner than cred_expire; 120 s by default. Less than this, and a busy
# machine starts steps too late for their credentials.
AuthInfo=socket={run}/munge/socket,cred_expire=10
StateSaveLocation={state}/slurmctld
SlurmdSpoolDir={state}/slurmd/%n
SlurmctldPidFile={state}/slurmctld/own.pid
SlurmdPidFile={state}/slurmd/%n.own.pid
SlurmctldLogFile={log}/slurmctld.log
SlurmdLogFile={log}/slurmd.%n.log
PlugStackConfig={etc}/plugstack.conf
# Control groups cannot be had everywhere: processes are known by their parents.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=5
SwitchType=switch/none
MpiDefault=none
PropagateResourceLimits=NONE
MailProg=/bin/true
# The nodes claim more than this machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1024
# Tests wait: jobs start, and what is dead is known to be, as soon as can be.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldTimeout=10
SlurmdTimeout=10
BatchStartTimeout=10
MessageTimeout=10
KillWait=5
MinJobAge=60
ReturnToService=2
JobRequeue=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={DATABASE_PORT}
AccountingStoragePass={run}/munge/socket
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
JobCompType=jobcomp/none
{nodes}
PartitionName=batch  Nodes=ALL Default=YES DefaultTime=10 MaxTime=1-0 State=UP PriorityTier=1
PartitionName=gpu    Nodes=ALL DefaultTime=10 MaxTime=1-0 State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL DefaultTime=10 MaxTime=1-0 State=UP PriorityTier=100
"""


def slurmdbd_conf(run: Path, log: Path, state: Path) -> str:
    return f"""\
AuthType=auth/munge
AuthInfo=socket={run}/munge/socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={DATABASE_PORT}
SlurmUser=slurm
LogFile={log}/slurmdbd.log
PidFile={state}/slurmctld/slurmdbd.own.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_acct_db
"""


def gres_conf(devices: Path) -> str:
    # CUDA_VISIBLE_DEVICES is set for GPUs that have a device file: null devices stand in for them.
    return f"AutoDetect=off\nName=gpu File={devices}/nvidia[0-{GPUS - 1}]\n"


def hosts() -> str:
    lines = ["127.0.0.1 localhost", f"{address(0)} {socket.gethostname().partition('.')[0]}"]
    return "\n".join([*lines, *(f"{address(node)} node{node}" for node in range(1, NODES + 1)), ""])
