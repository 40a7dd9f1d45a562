"""How jobs stand, asked of a real Slurm: each way to wait and to end is told apart."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pytest

from executors.slurm.queue import UNKNOWN, View, query
from executors.slurm.submission import Job, cancel, find, submit
from launcher.errors import TunnelError
from tests.executors.slurm.cluster import HELD, Cluster
from tests.labs.machine import until
from tests.labs.slurm.lab import SlurmLab

NOTED = 'echo "$SLURM_JOB_ID ${SLURM_RESTART_COUNT:-0} $(date +%s) $SLURM_JOB_NODELIST" >>started\n'


@pytest.fixture
def cluster(slurm_lab: SlurmLab) -> Iterator[Cluster]:
    made = Cluster(slurm_lab)
    yield made
    made.clean()


class Watched:
    """Jobs that were submitted, and what was last seen of each."""

    def __init__(self, cluster: Cluster, jobs: Sequence[Job]) -> None:
        self.cluster, self.jobs = cluster, jobs
        answers = submit(cluster.tunnel, jobs)
        assert all(isinstance(answer, int) for answer in answers.values()), answers
        self.asked: dict[str, tuple[str, int]] = {job.folder: (job.name, int(answers[job.folder])) for job in jobs}
        self.views: Mapping[str, View | None] = {}

    def look(self) -> list[View | None]:
        self.views = query(self.cluster.tunnel, self.asked)
        assert list(self.views) == list(self.asked)
        return [*self.views.values()]

    def wait(self, states: Sequence[str], seconds: float = 40) -> list[View]:
        """Until all have been seen in these states."""
        until(lambda: [view and view.state for view in self.look()] == [*states], seconds, f"{states}: {self.views}")
        return [view for view in self.views.values() if view is not None]


def ended(view: View) -> tuple[str, int | None, int | None]:
    return view.state, view.exit_code, view.signal


def test_how_jobs_wait(cluster: Cluster) -> None:
    jobs = [
        *cluster.jobs(1, options=HELD),
        *cluster.jobs(1, options="#SBATCH --begin=now+1hour\n"),
        *cluster.jobs(1, options="#SBATCH --time=9-00:00:00\n"),
        *cluster.jobs(1, options="#SBATCH --nodes=99\n"),
    ]
    (last,) = cluster.jobs(1)
    watched = Watched(cluster, [*jobs, replace(last, needs=(jobs[0].folder,))])
    before = cluster.tunnel.commands
    views = watched.wait(["PENDING"] * 5)
    assert type(cluster.tunnel).commands == before + 1
    reasons = ["JobHeldUser", "BeginTime", "PartitionTimeLimit", "PartitionNodeLimit", "Dependency"]
    until(lambda: [view.reason for view in watched.look() if view] == reasons, 30, f"{reasons}: {views}")
    views = watched.wait(["PENDING"] * 5)
    assert abs((views[1].start or 0) - time.time() - 3600) < 300
    assert not any(view.started or view.nodes for view in views)
    cancel(cluster.tunnel, jobs)
    # What the last one needs will never be: the scheduler says so while it waits, and ends it by itself.
    watched.wait(["CANCELLED"] * 5)


def test_a_job_that_runs(cluster: Cluster) -> None:
    watched = Watched(cluster, cluster.jobs(1, NOTED + "sleep 300", "#SBATCH --nodes=2\n"))
    (view,) = watched.wait(["RUNNING"])
    until(lambda: all(view and view.started for view in watched.look()), 10, "its mark")
    assert view.nodes.startswith("node[")
    assert abs((view.start or 0) - time.time()) < 60
    assert view.job_id == next(iter(watched.asked.values()))[1]


ENDINGS = {
    "true": ("COMPLETED", 0, 0),
    "exit 7": ("FAILED", 7, 0),
    "kill -SEGV $$": ("FAILED", 0, 11),
    "printf '%s\\n' 5 'out-of-retries: x' >ended; exit 5": ("FAILED", 5, 0),
}


def test_how_jobs_end_and_the_queue_forgets_them(cluster: Cluster) -> None:
    """The queue forgets after a minute; what accounting knows is the same."""
    jobs = [cluster.jobs(1, body)[0] for body in ENDINGS]
    limited = cluster.jobs(1, "sleep 300", "#SBATCH --time=1\n") + cluster.jobs(1, "sleep 300")
    watched, running = Watched(cluster, jobs), Watched(cluster, limited)
    until(lambda: [ended(view) for view in watched.look() if view] == [*ENDINGS.values()], 40, "their ends")
    views = watched.wait([state for state, _, _ in ENDINGS.values()])
    assert [view.ended for view in views] == [None, None, None, (5, "out-of-retries: x")]
    assert all(view.nodes.startswith("node") for view in views)
    running.wait(["RUNNING", "RUNNING"])
    cancel(cluster.tunnel, limited[1:])
    running.wait(["RUNNING", "CANCELLED"])
    until(lambda: forgotten(cluster, jobs), 120, "the queue to forget them")
    assert [ended(view) for view in watched.look() if view] == [*ENDINGS.values()]
    running.wait(["TIMEOUT", "CANCELLED"], 120)


def forgotten(cluster: Cluster, jobs: Sequence[Job]) -> bool:
    listed = cluster.lab.command("squeue", "-h", "-t", "all", "-o", "%j").splitlines()
    return not {job.name for job in jobs} & set(listed)


def test_a_requeued_job_counts_its_restarts(cluster: Cluster) -> None:
    body = NOTED + '[ "${SLURM_RESTART_COUNT:-0}" = 2 ] || { scontrol requeue $SLURM_JOB_ID; sleep 60; }; sleep 60'
    watched = Watched(cluster, cluster.jobs(1, body, "#SBATCH --requeue\n"))
    until(lambda: all(view and view.restarts == 2 and view.state == "RUNNING" for view in watched.look()), 60, "it")


def test_arrays(cluster: Cluster) -> None:
    body = "mkdir -p array_$SLURM_ARRAY_TASK_ID; cd array_$SLURM_ARRAY_TASK_ID; echo x 1 x x >>started\n"
    body += "[ $SLURM_ARRAY_TASK_ID != 3 ] || sleep 300; printf '%s\\n' $SLURM_ARRAY_TASK_ID exit >ended\n"
    body += "exit $SLURM_ARRAY_TASK_ID"
    watched = Watched(cluster, cluster.jobs(1, body, "#SBATCH --array=0,2-3,7\n"))
    states = {0: "COMPLETED", 2: "FAILED", 3: "RUNNING", 7: "FAILED"}
    until(lambda: [view.elements for view in watched.look() if view] == [states], 40, f"{watched.views}")
    (view,) = watched.wait(["RUNNING"])
    assert view.job_id == next(iter(watched.asked.values()))[1]
    assert view.restarts == 1
    cluster.lab.command("scancel", f"{view.job_id}_3")
    until(lambda: [view.state for view in watched.look() if view] == ["FAILED"], 40, "its end")
    (last,) = watched.look()
    assert last is not None
    assert last.exit_code == 2
    assert last.ended in ((2, "exit"), (7, "exit"))


def test_an_array_that_waits(cluster: Cluster) -> None:
    watched = Watched(cluster, cluster.jobs(1, options=HELD + "#SBATCH --array=0-2\n"))
    (view,) = watched.wait(["PENDING"])
    assert view.elements == dict.fromkeys(range(3), "PENDING")


def test_another_job_of_that_id_is_not_ours(cluster: Cluster) -> None:
    """As after a crash of the scheduler, which uses ids again."""
    ours, done, ran, part, strangers = cluster.jobs(5, options=HELD)
    (id_,) = submit(cluster.tunnel, [strangers]).values()
    cluster.tunnel.put(b"3\nout-of-retries\n", f"{done.folder}/ended")
    cluster.tunnel.put(b"1 0 1700000000 node1\n", f"{ran.folder}/started")
    for element, name, text in (
        (0, "started", b"1 0 1 node1\n"),
        (0, "ended", b"0\nexit\n"),
        (1, "started", b"2 0 1 n\n"),
    ):
        cluster.tunnel.put(text, f"{part.folder}/array_{element}/{name}")
    seen = query(cluster.tunnel, {job.folder: (job.name, int(id_)) for job in (ours, done, ran, part)})
    assert seen[ours.folder] is None
    view = seen[done.folder]
    assert view is not None
    assert (ended(view), view.ended) == (("FAILED", 3, 0), (3, "out-of-retries"))
    assert seen[ran.folder] == View(job_id=int(id_), state=UNKNOWN, started=True)
    assert (left := seen[part.folder]) is not None
    assert left.state == UNKNOWN, "an element of it has not ended, as far as anybody knows"


def test_nothing_is_asked_of_nobody(cluster: Cluster) -> None:
    before = cluster.tunnel.commands
    assert query(cluster.tunnel, {}) == {}
    assert type(cluster.tunnel).commands == before


def test_out_of_memory(cluster: Cluster) -> None:
    """Accounting's word for it; the lab has no control groups that would kill a job for its memory."""
    watched = Watched(cluster, cluster.jobs(1, "exit 1"))
    until(lambda: [ended(view) for view in watched.look() if view] == [("FAILED", 1, 0)], 40, "its end")
    cluster.account(next(iter(watched.asked.values()))[1], "state=11")
    watched.wait(["OUT_OF_MEMORY"])


def test_what_accounting_goes_on_saying_of_a_lost_job(cluster: Cluster) -> None:
    """It waits there for ever, although the scheduler knows no job of that name."""
    stranger, lost = cluster.jobs(2, options="#SBATCH --nodes=99\n")
    (id_,) = submit(cluster.tunnel, [stranger]).values()
    until(lambda: cluster.accounted(id_), 30, "accounting")
    cluster.account(id_, f"job_name='{lost.name}'")
    assert query(cluster.tunnel, {lost.folder: (lost.name, int(id_))}) == {lost.folder: None}
    aged = f"{lost.name}\n{int(time.time()) - 3600}\nx:1\n".encode()  # else the queue alone is asked
    cluster.tunnel.put(aged, f"{lost.folder}/submission")
    assert find(cluster.tunnel, [lost]) == {lost.folder: None}


def test_a_node_fails(slurm_lab_alone: SlurmLab, cluster: Cluster) -> None:
    jobs = [cluster.jobs(1, NOTED + "sleep 300", options)[0] for options in ("#SBATCH --no-requeue\n", "")]
    requeued = replace(jobs[1])
    watched = Watched(cluster, [jobs[0], requeued])
    views = watched.wait(["RUNNING", "RUNNING"])
    until(lambda: all(view and view.started for view in watched.look()), 10, "their marks")
    for node in {view.nodes for view in views}:
        slurm_lab_alone.command("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    failed, again = watched.wait(["NODE_FAIL", "PENDING"])
    assert failed.nodes == views[0].nodes
    assert again.reason in ("BeginTime", "None", "Resources")
    slurm_lab_alone.wait_until_idle()
    until(lambda: [view.restarts for view in watched.look() if view] == [0, 1], 60, "its restart")


def test_daemons_that_are_down(slurm_lab_alone: SlurmLab, cluster: Cluster) -> None:
    """slurmdbd: the queue and what scripts have left speak. slurmctld: nobody does."""
    held, failed, gone = cluster.jobs(1, options=HELD) + cluster.jobs(1, "exit 3") + cluster.jobs(1)
    watched = Watched(cluster, [held, failed])
    watched.wait(["PENDING", "FAILED"])
    watched.asked[gone.folder] = (gone.name, 999_999)
    slurm_lab_alone.kill("slurmdbd")
    views = watched.look()
    assert [view and view.state for view in views] == ["PENDING", "FAILED", "PENDING"]
    assert views[2] is not None
    assert views[2].reason == "Slurm's accounting does not answer"  # which may know that it has ended
    slurm_lab_alone.start("slurmdbd")
    until(lambda: watched.look()[2] is None, 30, "accounting")
    slurm_lab_alone.kill("slurmctld")
    with pytest.raises(TunnelError, match="does not answer"):
        watched.look()
    slurm_lab_alone.start("slurmctld")
