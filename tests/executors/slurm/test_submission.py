"""Against a real Slurm through a real sshd: each job is submitted once, whatever breaks."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from executors.archive import archive
from executors.package import Package
from executors.slurm.submission import Answer, Job, cancel, find, place, resubmission, submit, survey, upload
from launcher.errors import TunnelError
from tests.executors.slurm.cluster import HELD, Cluster, tar, text
from tests.labs.machine import until
from tests.labs.proxy import Proxy
from tests.labs.slurm.lab import SlurmLab
from tests.labs.users import ROOT


@pytest.fixture
def cluster(slurm_lab: SlurmLab) -> Iterator[Cluster]:
    made = Cluster(slurm_lab)
    yield made
    made.clean()


@pytest.fixture
def proxy(slurm_lab: SlurmLab) -> Iterator[Proxy]:
    with Proxy(slurm_lab.sshd.host, slurm_lab.sshd.port) as made:
        yield made


@contextlib.contextmanager
def kept(file: Path) -> Iterator[None]:
    """It is after as it was before."""
    before = file.read_text() if file.exists() else None
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        if before is not None:
            file.write_text(before)


def assert_once(cluster: Cluster, jobs: Sequence[Job], answers: dict[str, int | str]) -> None:
    assert cluster.known(jobs) == {job.name: [answers[job.folder]] for job in jobs}


@pytest.mark.parametrize("count", [1, 100])
def test_jobs_are_submitted_in_one_round_trip(cluster: Cluster, count: int) -> None:
    jobs = cluster.jobs(count, options=HELD)
    before = cluster.tunnel.commands
    answers = submit(cluster.tunnel, jobs)
    assert type(cluster.tunnel).commands == before + 1
    assert_once(cluster, jobs, answers)
    assert submit(cluster.tunnel, jobs) == answers
    assert find(cluster.tunnel, jobs) == answers
    assert_once(cluster, jobs, answers)


def test_what_a_submission_leaves(cluster: Cluster) -> None:
    (job,) = cluster.jobs(1, options=HELD)
    assert find(cluster.tunnel, [job]) == {job.folder: None}
    id_ = submit(cluster.tunnel, [job])[job.folder]
    assert text(cluster.tunnel, f"{job.folder}/job_id") == f"{id_}\n"
    assert text(cluster.tunnel, f"{job.folder}/submission").splitlines()[0] == job.name
    left = cluster.tunnel.run(["ls", "-A", job.folder, cluster.tunnel.job_dir], timeout=10).stdout.decode()
    assert set(left.split()) & {"submitting", "submitting.breaking"} == set()
    assert ".part" not in left
    shown = cluster.lab.command("scontrol", "show", "job", str(id_))
    assert f"WorkDir={job.folder}\n" in shown


@pytest.mark.parametrize("half", [False, True])
def test_the_line_breaks_at_any_message(cluster: Cluster, proxy: Proxy, half: bool) -> None:
    """One that is cut off before it, or in the middle of it; then all is asked again, over another line."""
    proxy.half = half
    cut = -1
    broken = done = False
    while not done:
        cut += 1
        first, second = cluster.jobs(2, options=HELD)
        jobs = [first, replace(second, needs=(first.folder,))]
        tunnel = cluster.reach(proxy.port)
        tunnel.run(["true"], timeout=10)
        time.sleep(0.02)  # what belongs to that has passed
        proxy.messages, proxy.cut = 0, cut
        try:
            submit(tunnel, jobs)
            done = True
        except TunnelError:
            broken = True
        proxy.cut = None
        tunnel.close()
        answers = submit(cluster.tunnel, jobs)
        assert_once(cluster, jobs, answers)
        assert find(cluster.tunnel, jobs) == answers
    assert broken
    assert cut > 6  # opening, command, list, answers and end were among them


KILLED = """
import sys
from executors.slurm.submission import Job, submit
from executors.tunnel import SSHTunnel

config, job_dir, *words = sys.argv[1:]
tunnel = SSHTunnel("lab", ssh_config=config, job_dir=job_dir)
tunnel.run(["true"], timeout=10)
print("ready", flush=True)
submit(tunnel, [Job(folder=folder, name=name) for folder, name in zip(words[::2], words[1::2])])
print("done", flush=True)
"""


def test_the_launcher_is_killed_at_any_instant(cluster: Cluster) -> None:
    chance = random.Random(4)  # noqa: S311
    for _ in range(8):
        jobs = cluster.jobs(10, options=HELD)
        words = [word for job in jobs for word in (job.folder, job.name)]
        assert cluster.tunnel.ssh_config is not None
        argv = [sys.executable, "-c", KILLED, cluster.tunnel.ssh_config, cluster.tunnel.job_dir, *words]
        with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as launcher:
            assert launcher.stdout is not None
            assert launcher.stdout.readline() == b"ready\n"
            time.sleep(chance.random() * 0.15)
            launcher.kill()
        answers = submit(cluster.tunnel, jobs)
        assert_once(cluster, jobs, answers)


def kill(words: str) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if words in (process / "cmdline").read_bytes().decode(errors="replace"):
                os.kill(int(process.name), signal.SIGKILL)


def test_the_script_there_is_killed_at_any_instant(cluster: Cluster) -> None:
    """As a login node does with what a session leaves behind; sbatch itself goes on."""
    chance = random.Random(5)  # noqa: S311
    broken = 0
    for _ in range(8):
        jobs = cluster.jobs(10, options=HELD)
        with ThreadPoolExecutor() as pool:
            asked = pool.submit(submit, cluster.tunnel, jobs)
            time.sleep(chance.random() * 0.12)
            kill(f"submission\0submit\0{cluster.tunnel.job_dir}\0")
            try:
                asked.result()
            except TunnelError as error:
                assert error.lost
                broken += 1
        assert_once(cluster, jobs, submit(cluster.tunnel, jobs))
    assert broken > 2


def test_several_ask_at_the_same_time(cluster: Cluster) -> None:
    jobs = cluster.jobs(10, options=HELD)
    tunnels = [cluster.reach() for _ in range(4)]
    gate = threading.Barrier(len(tunnels))

    def ask(tunnel: object) -> dict[str, int | str]:
        gate.wait()
        return submit(tunnel, jobs)  # type: ignore[arg-type]

    with ThreadPoolExecutor(len(tunnels)) as pool:
        first, *others = pool.map(ask, tunnels)
    assert others == [first] * 3
    assert_once(cluster, jobs, first)
    for tunnel in tunnels:
        tunnel.close()


def test_a_lock_that_nobody_holds_any_more(cluster: Cluster) -> None:
    (job,) = cluster.jobs(1, options=HELD)
    host = cluster.tunnel.run(["uname", "-n"], timeout=10).stdout.decode().strip()
    lock = f"{cluster.tunnel.job_dir}/submitting"
    for holder in (f"{host}:{2**22 - 1}:1:1", "elsewhere:1:1:1"):
        cluster.tunnel.run(["ln", "-s", holder, lock], timeout=10)
        if holder.startswith("elsewhere"):  # of another login node, only its age tells
            cluster.tunnel.run(["touch", "-h", "-d", "1 hour ago", lock], timeout=10)
        assert_once(cluster, [job], submit(cluster.tunnel, [job]))


def test_whoever_knows_only_the_intent_asks_for_the_name(cluster: Cluster) -> None:
    (job,) = cluster.jobs(1, options=HELD)
    answers = submit(cluster.tunnel, [job])
    cluster.tunnel.run(["rm", f"{job.folder}/job_id"], timeout=10)
    assert submit(cluster.tunnel, [job]) == answers
    assert text(cluster.tunnel, f"{job.folder}/job_id") == f"{answers[job.folder]}\n"
    assert_once(cluster, [job], answers)


def test_one_that_the_queue_has_forgotten(cluster: Cluster) -> None:
    """What accounting, or the file that its script begins with, still know of it."""
    ended, began, array, nobody = cluster.jobs(4)
    answers = submit(cluster.tunnel, [ended])
    long_ago = 'printf "%s\\n" "$1" $(($(date +%s) - 3600)) x:1 >"$2/submission"'
    until(
        lambda: "COMPLETED" in cluster.lab.command("sacct", "-nXPj", str(answers[ended.folder]), "-o", "state"), 30, ""
    )
    # The queue forgets after a minute: an hour later, it has none of this name.
    for job in (ended, began, array, nobody):
        cluster.tunnel.run(["sh", "-c", long_ago, "sh", job.name, job.folder], timeout=10)
    cluster.tunnel.put(b"4711 0 1700000000 node1\n", f"{began.folder}/started")
    cluster.tunnel.put(b"4713 0 1700000000 node1\n", f"{array.folder}/array_1/started")
    cluster.tunnel.put(b"4712\n", f"{array.folder}/job_id")
    cluster.tunnel.run(["rm", f"{ended.folder}/job_id"], timeout=10)
    assert find(cluster.tunnel, [ended, began, array, nobody]) == {
        **answers,
        began.folder: 4711,
        array.folder: 4712,
        nobody.folder: None,
    }
    cluster.tunnel.run(["rm", f"{array.folder}/job_id"], timeout=10)
    assert submit(cluster.tunnel, [ended, began, array]) == {**answers, began.folder: 4711, array.folder: 4713}


def test_what_slurm_refuses_is_said_in_its_words(cluster: Cluster) -> None:
    cases = {
        "#SBATCH --partition=nowhere\n": "invalid partition specified: nowhere",
        "#SBATCH --account=nobody\n": "Invalid account",
        "#SBATCH --gres=gpu:99\n": "Requested node configuration is not available",
        "#SBATCH --mem=99999G\n": "Memory specification can not be satisfied",
    }
    jobs = {options: cluster.jobs(1, options=options)[0] for options in cases}
    (fine,) = cluster.jobs(1, options=HELD)
    answers = submit(cluster.tunnel, [*jobs.values(), fine])
    for options, job in jobs.items():
        answer = answers[job.folder]
        assert isinstance(answer, str)
        assert cases[options] in answer
    assert isinstance(answers[fine.folder], int)
    assert find(cluster.tunnel, [*jobs.values()]) == {job.folder: None for job in jobs.values()}


def test_a_job_waits_for_those_it_needs(cluster: Cluster) -> None:
    first, second, third = cluster.jobs(3, options=HELD)
    second, third = replace(second, needs=(first.folder,)), replace(third, needs=(first.folder, second.folder))
    answers = submit(cluster.tunnel, [first, second, third])
    asked = cluster.lab.command("squeue", "-h", "-j", str(answers[third.folder]), "-o", "%E")
    assert (
        asked.strip() == f"afterok:{answers[first.folder]}(unfulfilled),afterok:{answers[second.folder]}(unfulfilled)"
    )
    ended, refused, after, other = cluster.jobs(4, options=HELD)
    cluster.tunnel.put(b"77\n", f"{ended.folder}/job_id")
    cluster.tunnel.put(b"0\nexit\n", f"{ended.folder}/ended")
    answers = submit(
        cluster.tunnel, [replace(after, needs=(ended.folder,)), replace(other, needs=(refused.folder, ended.folder))]
    )
    assert isinstance(answers[after.folder], int)
    assert answers[other.folder] == f"what it needs was not submitted: {refused.folder}"


def test_variables_of_a_login_file_change_nothing(slurm_lab_alone: SlurmLab, cluster: Cluster) -> None:
    (job,) = cluster.jobs(1, options=HELD)
    rc = cluster.lab.sshd.home / ".bashrc"
    with kept(rc):
        settings = "export SBATCH_PARTITION=nowhere SQUEUE_PARTITION=nowhere SQUEUE_STATES=R SACCT_FORMAT=user"
        rc.write_text(f"{settings}\n{rc.read_text() if rc.exists() else ''}")
        answers = submit(cluster.tunnel, [job])
        assert isinstance(answers[job.folder], int)
        assert find(cluster.tunnel, [job]) == answers


def test_cancelled_jobs_end_and_their_secrets_go(cluster: Cluster) -> None:
    waiting, running = cluster.jobs(1, options=HELD) + cluster.jobs(1, body="exec sleep 300")
    stranger = cluster.jobs(1, options=HELD)[0]
    answers = submit(cluster.tunnel, [waiting, running, stranger])
    for job in (waiting, running):
        for name in ("secrets.json", "environment.sh"):
            cluster.tunnel.put(b"secret", f"{job.folder}/{name}", 0o600)

    def state(job: Job) -> str:
        return cluster.lab.command("squeue", "-h", "-t", "all", "-j", str(answers[job.folder]), "-o", "%T").strip()

    until(lambda: state(running) == "RUNNING", 30, "the job")
    cancel(cluster.tunnel, [waiting, running])
    until(lambda: state(waiting) == state(running) == "CANCELLED", 30, "their end")
    assert state(stranger) == "PENDING"
    left = cluster.tunnel.run(["ls", waiting.folder, running.folder], timeout=10).stdout.decode()
    assert "secrets" not in left
    assert "environment" not in left
    cancel(cluster.tunnel, [waiting, running, *cluster.jobs(1)])  # what is not there is no error


def test_now_leaves_a_job_no_time(cluster: Cluster) -> None:
    stubborn = "trap '' TERM\ntouch deaf\nwhile :; do sleep 0.1; done"
    (job,) = cluster.jobs(1, body=stubborn)
    answers = submit(cluster.tunnel, [job])
    until(lambda: cluster.tunnel.run(["test", "-e", f"{job.folder}/deaf"], timeout=10).status == 0, 30, "the job")
    begun = time.monotonic()
    cancel(cluster.tunnel, [job], now=True)
    shown = ["squeue", "-h", "-t", "all", "-j", str(answers[job.folder]), "-o", "%T"]
    until(lambda: cluster.lab.command(*shown).strip() in ("CANCELLED", "FAILED"), 30, "its end")
    print(f"{time.monotonic() - begun:.1f} s")


def test_a_survey_tells_what_is_missing_and_what_never_runs(cluster: Cluster) -> None:
    cluster.tunnel.put(b"x", f"{cluster.tunnel.job_dir}/packages/aaa.tar.gz")
    account = "#SBATCH --account=proj-a\n"
    before = cluster.tunnel.commands
    found = survey(
        cluster.tunnel,
        ["aaa", "bbb"],
        {
            "fine": f"{account}#SBATCH --nodes=2\n",
            "partition": f"{account}#SBATCH --partition=nowhere",
            "time": f"#!/bin/bash\n{account}#SBATCH --time=2-00:00:00\n",
            "nodes": f"{account}#SBATCH --nodes=9",
        },
    )
    assert type(cluster.tunnel).commands == before + 1
    assert found.missing == ("bbb",)
    assert found.answers["fine"].objection == ""
    assert abs((found.answers["fine"].start or 0) - time.time()) < 24 * 3600
    assert "invalid partition specified: nowhere" in found.answers["partition"].objection
    assert found.answers["time"].objection == "time=2-00:00:00 is more than partition batch allows (1-00:00:00)"
    assert "Requested node configuration is not available" in found.answers["nodes"].objection
    assert survey(cluster.tunnel, [], {}).answers == {}
    assert Answer().objection == ""


def test_an_experiment_is_placed_whole_or_not_at_all(cluster: Cluster, proxy: Proxy, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_text("print()")
    (code / "run").write_text("#!/bin/sh")
    (code / "run").chmod(0o755)
    package = Package(root=code, files=(("train.py", code / "train.py"), ("deep/run", code / "run")))
    upload(cluster.tunnel, {package.digest: archive(package)})
    files = tar({"task/task.json": b"{}", "task/secrets.json": b"x", "big": random.Random(1).randbytes(300_000)}, 0o600)  # noqa: S311
    job_dir = cluster.tunnel.job_dir
    cut, done = 5, False
    while not done:
        experiment = f"{cluster.mark}-{cut}"
        tunnel = cluster.reach(proxy.port)
        tunnel.run(["true"], timeout=10)
        proxy.messages, proxy.cut = 0, cut
        try:
            place(tunnel, job_dir, experiment, files, {"code": package.digest}, package.digest)
            done = True
        except TunnelError:
            pass
        proxy.cut = None
        tunnel.close()
        there = cluster.tunnel.run(["ls", f"{job_dir}/experiments/{experiment}/task/task.json"], timeout=10).status == 0
        assert there or cluster.tunnel.run(["test", "-e", f"{job_dir}/experiments/{experiment}"], timeout=10).status
        place(cluster.tunnel, job_dir, experiment, files, {"code": package.digest}, package.digest)
        shown = cluster.tunnel.run(
            ["find", f"{job_dir}/experiments/{experiment}", "-type", "f", "-printf", "%P %m\\n"], timeout=10
        )
        assert set(shown.stdout.decode().split("\n")[:-1]) == {
            ".placed 644",
            "big 600",
            "code/deep/run 755",
            "code/train.py 644",
            "task/secrets.json 600",
            "task/task.json 600",
        }
        cut += 4
    assert cut > 20
    ours = cluster.tunnel.run(["ls", "-A", f"{job_dir}/packages", f"{job_dir}/packages/{package.digest}"], timeout=10)
    assert ours.stdout.split()[-2:] == [b"deep", b"train.py"]
    until(
        lambda: b".part" not in cluster.tunnel.run(["ls", "-A", f"{job_dir}/experiments"], timeout=9).stdout, 10, "it"
    )
    with pytest.raises(TunnelError, match="is there already, with other tasks in it"):
        place(cluster.tunnel, job_dir, experiment, tar({"other": b""}), {}, package.digest)


def test_what_is_there_is_not_sent_again(cluster: Cluster, proxy: Proxy, tmp_path: Path) -> None:
    """A second launch of an unchanged repository of 5,000 files: everything, with the connection."""
    chance = random.Random(2)  # noqa: S311
    code = tmp_path / "code"
    for n in range(5000):
        path = code / f"folder_{n % 50}" / f"file_{n}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(100))
    package = Package(root=code, files=tuple((str(path.relative_to(code)), path) for path in code.rglob("*.py")))
    script = "#!/bin/sh\n#SBATCH --account=proj-a\n#SBATCH --hold\n#SBATCH --output=/dev/null\ntrue\n"
    for launch in range(2):
        tunnel = cluster.reach(proxy.port)
        proxy.sent = 0
        found = survey(tunnel, [package.digest], {"task": script})
        upload(tunnel, {digest: archive(package) for digest in found.missing})
        experiment = f"{cluster.mark}-{launch}"
        files = tar({"task/job.sh": script.encode()})
        place(tunnel, tunnel.job_dir, experiment, files, {"code": package.digest}, package.digest)
        folder = f"{tunnel.job_dir}/experiments/{experiment}"
        submit(tunnel, [Job(folder=f"{folder}/task", name=f"task.{experiment}")])
        assert len(tunnel.run(["find", f"{folder}/code", "-type", "f"], timeout=10).stdout.splitlines()) == 5000
        tunnel.close()
        assert proxy.sent > 500_000 if launch == 0 else proxy.sent < 50_000, proxy.sent


def test_a_half_upload_is_never_used(cluster: Cluster, proxy: Proxy, tmp_path: Path) -> None:
    file = tmp_path / "archive"
    file.write_bytes(random.Random(3).randbytes(2_000_000))  # noqa: S311
    tunnel = cluster.reach(proxy.port)
    tunnel.run(["true"], timeout=10)
    proxy.messages, proxy.cut = 0, 12
    with pytest.raises(TunnelError):
        upload(tunnel, {"abc": file})
    assert survey(cluster.tunnel, ["abc"], {}).missing == ("abc",)
    proxy.cut = None
    upload(tunnel, {"abc": file})
    assert survey(cluster.tunnel, ["abc"], {}).missing == ()
    tunnel.close()


def test_a_full_disk(cluster: Cluster) -> None:
    """Nothing is submitted whose submission cannot be written down; there is room again, and it is."""
    (job,) = cluster.jobs(1, options=HELD)
    place_ = cluster.lab.sshd.home / f"full_{cluster.mark}"
    place_.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0777", "none", str(place_)], check=True)
    try:
        tunnel = replace(cluster.tunnel, job_dir=str(place_))
        tunnel.run(["cp", "-r", job.folder, f"{place_}/task"], timeout=10)
        tunnel.run(["sh", "-c", 'cat /dev/zero >"$1/filler"', "sh", str(place_)], timeout=10)
        own = replace(job, folder=f"{place_}/task")
        answer = submit(tunnel, [own])[own.folder]
        assert isinstance(answer, str)
        assert "No space left on device" in answer
        with pytest.raises(TunnelError, match="No space left on device") as raised:
            place(tunnel, str(place_), "x", bytes(100_000), {}, "y")
        assert "make room on" in str(raised.value)
        assert cluster.known([own]) == {own.name: []}
        tunnel.run(["rm", f"{place_}/filler"], timeout=10)
        answers = submit(tunnel, [own])
        assert_once(cluster, [own], answers)
        # On a disk that is full, or read-only, a job can be cancelled all the same.
        subprocess.run(["mount", "-o", "remount,ro", str(place_)], check=True)
        cancel(tunnel, [own])
        shown = ["squeue", "-h", "-t", "all", "-n", own.name, "-o", "%T"]
        until(lambda: cluster.lab.command(*shown).strip() == "CANCELLED", 30, "its end")
    finally:
        subprocess.run(["umount", "-l", str(place_)], check=True)
        place_.rmdir()


def test_a_folder_of_somebody_else(cluster: Cluster, lab_folder: Path) -> None:
    tunnel = replace(cluster.tunnel, job_dir=str(lab_folder))
    with pytest.raises(TunnelError, match="Permission denied") as raised:
        submit(tunnel, [Job(folder=f"{lab_folder}/task", name="x")])
    assert "job_dir='...' for a folder on" in str(raised.value)
    with pytest.raises(TunnelError, match="Permission denied"):
        place(tunnel, str(lab_folder), "x", tar({}), {}, "y")


def test_a_place_without_slurm(slurm_lab_alone: SlurmLab, cluster: Cluster) -> None:
    """No login file names a folder that has it, either."""
    without = cluster.lab.sshd.home / f"without_{cluster.mark}"
    without.mkdir(mode=0o755)
    for name in ("env", "sed", "id", "tail", "sh", "cat"):
        (without / name).symlink_to(f"/usr/bin/{name}")
    rc = cluster.lab.sshd.home / ".bashrc"
    with kept(rc):
        rc.write_text(f"PATH={without}\n")
        with pytest.raises(TunnelError, match=r"there is no sbatch on alice@lab") as raised:
            submit(cluster.tunnel, [Job(folder="/nowhere", name="x")])
    assert "a login node" in str(raised.value)
    shutil.rmtree(without)


def test_a_place_whose_slurm_only_login_shells_find(slurm_lab_alone: SlurmLab, cluster: Cluster) -> None:
    (job,) = cluster.jobs(1, options=HELD)
    without = cluster.lab.sshd.home / f"without_{cluster.mark}"
    without.mkdir(mode=0o755)
    hidden = [program for program in Path("/usr/bin").iterdir() if program.name != "sbatch"]
    for program in hidden:
        (without / program.name).symlink_to(program)
    rc, profile = (cluster.lab.sshd.home / name for name in (".bashrc", ".bash_profile"))
    with kept(rc), kept(profile):
        rc.write_text(f"PATH={without}\n")
        profile.write_text("echo welcome; PATH=/usr/bin:/bin\n")
        assert_once(cluster, [job], submit(cluster.tunnel, [job]))
    shutil.rmtree(without)


def test_a_name_that_is_no_line(cluster: Cluster) -> None:
    with pytest.raises(TunnelError, match="has a line break in it"):
        submit(cluster.tunnel, [Job(folder="/a\nb", name="x")])


def test_slurmctld_is_down_during_a_submission(slurm_lab_alone: SlurmLab, cluster: Cluster) -> None:
    first, second = cluster.jobs(2, options=HELD)
    submit(cluster.tunnel, [first])
    slurm_lab_alone.kill("slurmctld")
    for ask in (submit, find, cancel):
        with pytest.raises(TunnelError, match=r"Slurm on .* does not answer") as raised:
            ask(cluster.tunnel, [second, first])
        assert raised.value.lost
        if ask is submit:
            break
    with pytest.raises(TunnelError, match="does not answer"):
        survey(cluster.tunnel, [], {"x": "#SBATCH --account=proj-a"})
    slurm_lab_alone.start("slurmctld")
    answers = submit(cluster.tunnel, [second])
    assert len(cluster.known([second])[second.name]) == 1
    assert cluster.known([second])[second.name] == [answers[second.folder]]


def test_what_the_scheduler_lost_is_submitted_under_another_name(slurm_lab_alone: SlurmLab, cluster: Cluster) -> None:
    """Killed right after it, slurmctld has forgotten the job, and gives its id to the next."""
    kept, stranger = cluster.jobs(2, options=HELD)
    submit(cluster.tunnel, [kept])
    slurm_lab_alone.stop("slurmctld")  # which saves what it knows
    slurm_lab_alone.start("slurmctld")
    reused = None
    for _ in range(10):
        saved, lost = cluster.jobs(2, options=HELD)
        first = submit(cluster.tunnel, [saved, lost])[lost.folder]
        slurm_lab_alone.kill("slurmctld")
        slurm_lab_alone.start("slurmctld")
        if f"|{lost.name}\n" not in slurm_lab_alone.command("squeue", "-ht", "all", "-o", "%F|%j"):
            reused = submit(cluster.tunnel, [stranger])[stranger.folder]
            break
    assert reused == first
    assert find(cluster.tunnel, [lost]) == {lost.folder: None}
    assert find(cluster.tunnel, [kept])[kept.folder] is not None
    assert submit(cluster.tunnel, [lost]) == {lost.folder: first}  # the journal says so: nothing is submitted blindly
    resubmission(cluster.tunnel, kept)
    again = submit(cluster.tunnel, [resubmission(cluster.tunnel, lost), kept])
    assert again[kept.folder] == find(cluster.tunnel, [kept])[kept.folder]
    second = again[lost.folder]
    assert second not in (first, "")
    named = replace(lost, name=f"{lost.name}.2")
    assert cluster.known([named, stranger]) == {named.name: [second], stranger.name: [reused]}
    assert find(cluster.tunnel, [lost]) == {lost.folder: second}
    assert text(cluster.tunnel, f"{lost.folder}/job_id.1") == f"{first}\n"
    cancel(cluster.tunnel, [lost])
    shown = slurm_lab_alone.command("squeue", "-h", "-t", "all", "-j", f"{second},{reused}", "-o", "%i %T")
    assert sorted(shown.split("\n")[:-1]) == sorted([f"{second} CANCELLED", f"{reused} PENDING"])


def test_without_accounting_a_submission_works(slurm_lab_alone: SlurmLab, cluster: Cluster) -> None:
    first, second = cluster.jobs(2, options=HELD)
    slurm_lab_alone.kill("slurmdbd")
    answers = submit(cluster.tunnel, [first, second])
    cluster.tunnel.run(["rm", f"{first.folder}/job_id"], timeout=10)
    assert submit(cluster.tunnel, [first, second]) == answers
    (third,) = cluster.jobs(1, options=HELD)
    cluster.tunnel.put(f"{third.name}\n1700000000\nx\n".encode(), f"{third.folder}/submission")
    with pytest.raises(TunnelError, match="does not answer"):  # it may have run, and only accounting would know
        submit(cluster.tunnel, [third])
