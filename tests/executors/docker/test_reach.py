"""The ways to an engine: over ssh and TLS, by DOCKER_HOST, host= and contexts; and what is said where there is none."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import in_containers
import pytest

import launcher as run
from executors.docker.address import address
from executors.docker.containers import EXPERIMENT
from executors.docker.engine import Engine
from executors.docker.ssh import PERSIST
from experiments.store import Store
from launcher.errors import ExecutorError, LaunchError, TunnelError
from tests.labs.containers.lab import ContainerLab
from tests.labs.machine import require_user, until
from tests.labs.sshd import Sshd, make_key

COMMAND = str(Path(sys.executable).with_name("gemma-launch"))
SCRIPT = Path(in_containers.__file__)
WAYS = ("host", "DOCKER_HOST", "docker context use", "DOCKER_CONTEXT")


class Gate:
    """A person's ssh and docker: `ssh lab` leads to the engine. Each ssh that is started leaves a line in `calls`."""

    def __init__(self, sshd: Sshd, folder: Path, monkeypatch: pytest.MonkeyPatch, member: str) -> None:
        self.sshd = sshd
        self.member = member
        self.folder = folder
        self.calls = folder / "calls"
        self.docker = folder / "docker"
        (folder / "programs").mkdir()
        self.docker.mkdir()
        for name in ("DOCKER_HOST", "DOCKER_CONTEXT"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("DOCKER_CONFIG", str(self.docker))
        monkeypatch.setenv("PATH", f"{folder / 'programs'}{os.pathsep}{os.environ['PATH']}")
        self.configure()

    def configure(self, more: str = "", **settings: object) -> None:
        """Another ~/.ssh/config."""
        config = self.sshd.ssh_config(more, **{"User": self.member} | settings)
        ssh = self.folder / "programs" / "ssh"
        count = f"echo $$ >>{shlex.quote(str(self.calls))}"
        ssh.write_text(f'#!/bin/sh\n{count}\nexec {shlex.join(["/usr/bin/ssh", "-F", config])} "$@"\n')
        ssh.chmod(0o755)

    def context(self, name: str, host: str, *more: str) -> None:
        create = ["docker", "context", "create", name, "--docker", ",".join([f"host={host}", *more])]
        subprocess.run(create, check=True, capture_output=True)

    def logins(self) -> int:
        return self.sshd.log().count("Accepted publickey")

    def idle(self) -> bool:
        """No ssh that was started runs, nor is there a connection."""
        return self.sshd.connections() == 0 and not any(
            "ssh" in _command(pid) for pid in self.calls.read_text().split()
        )


def _command(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


@pytest.fixture
def gate(
    container_lab: ContainerLab,
    make_sshd: Callable[..., Sshd],
    lab_folder: Path,
    tmp_path: Path,
    container_turn: None,
    monkeypatch: pytest.MonkeyPatch,
) -> Gate:
    member = container_lab.member()
    sshd = make_sshd(more=f"SetEnv DOCKER_HOST={container_lab.host}\nLogLevel INFO")
    return Gate(sshd, tmp_path, monkeypatch, member)


def experiment(lab: ContainerLab, task: Any, count: int = 1, **settings: Any) -> run.Experiment:
    code = run.PatternPackager(include_pattern=str(SCRIPT), relative_path=str(SCRIPT.parent))
    found = run.Experiment("reach")
    for number in range(count):
        executor = run.DockerExecutor(container_image=lab.image, packager=code, **settings)
        found.add(task, executor=executor, name=f"task{number}")
    return found


LAUNCH = """
import sys, launcher as run
experiment = run.Experiment("reach")
executor = run.DockerExecutor(container_image=sys.argv[1], host=sys.argv[2] or None)
experiment.add(run.Script(inline=sys.argv[3]), executor=executor, name="task")
experiment.run(detach="detach" in sys.argv, progress=False)
print(experiment.id)
"""


def launch(lab: ContainerLab, inline: str, host: str = "") -> str:
    """An experiment that is launched and left alone."""
    command = [sys.executable, "-c", LAUNCH, lab.image, host, inline, "detach"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def elsewhere(*words: str, env: dict[str, str] | None = None) -> str:
    """What `gemma-launch experiment` prints in a process that knows of no engine."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("DOCKER_")}
    done = subprocess.run(
        [COMMAND, "experiment", *words],
        env=known | {"DOCKER_CONFIG": "/nonexistent"} | (env or {}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )
    return done.stdout


def left(lab: ContainerLab, name: str) -> str:
    return lab.command("ps", "-aq", "--filter", f"label={EXPERIMENT}={name}")


def choose(gate: Gate, way: str, host: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> dict[str, Any]:
    """Settings of the executor."""
    if way == "host":
        return {"host": host}
    if way == "DOCKER_HOST":
        monkeypatch.setenv(way, host)
    else:
        gate.context("theirs", host, *more)
    if way == "docker context use":
        subprocess.run([*way.split(), "theirs"], check=True, capture_output=True)
    elif way == "DOCKER_CONTEXT":
        monkeypatch.setenv(way, "theirs")
    return {}


@pytest.mark.parametrize("way", WAYS)
def test_a_task_runs_whole_over_ssh(
    way: str,
    gate: Gate,
    container_lab: ContainerLab,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = choose(gate, way, "ssh://lab", monkeypatch)
    whole = experiment(container_lab, run.Partial(in_containers.work, 0.0), **settings)
    whole.run(progress=False)
    [task] = Store().find(whole.id).tasks
    assert task.result()["world"] == 1
    assert (task.folder / "rank_0.out").read_text() == "rank 0 of 1\n"
    assert left(container_lab, whole.id) == ""

    # The process that launches them has gone: it is the others that ask.
    later, lost = (launch(container_lab, f"sleep {seconds}; echo done", **settings) for seconds in (2, 60))
    assert "running" in elsewhere("status", lost)
    until(lambda: "succeeded" in elsewhere("status", later), 60, "its end")
    assert "done" in elsewhere("logs", later)
    assert left(container_lab, later) == ""
    shutil.rmtree(Store().find(lost).folder)
    assert f"removed container task.{lost}.0" in elsewhere("prune")
    assert left(container_lab, lost) == ""


def test_what_the_address_says_goes_before_the_config(gate: Gate, container_lab: ContainerLab) -> None:
    gate.configure(HostName="127.0.0.1", User="nobody", Port=1)
    with Engine(f"ssh://{gate.member}@lab:{gate.sshd.port}").asked("it") as client:
        assert client.ping()


def test_twenty_tasks_ride_on_one_connection(gate: Gate, container_lab: ContainerLab) -> None:
    before = gate.logins()
    many = experiment(container_lab, run.Partial(in_containers.work, 1.0), 20, host="ssh://lab")
    many.run(progress=False)
    assert gate.logins() - before <= 2


def test_more_at_once_than_the_server_takes_on_one_connection(
    gate: Gate, container_lab: ContainerLab, make_sshd: Callable[..., Sshd]
) -> None:
    gate.sshd = make_sshd(more=f"SetEnv DOCKER_HOST={container_lab.host}\nMaxSessions 1")
    gate.configure()
    engine = Engine("ssh://lab")
    with engine.asked("it") as client:
        streams = [client.api.events(decode=True) for _ in range(3)]  # each keeps a connection
        assert client.ping()
        for stream in streams:
            stream.close()


def test_a_connection_of_the_users_own_is_shared(gate: Gate, container_lab: ContainerLab) -> None:
    """Somebody who must log in with a second factor does it once, by hand."""
    line = gate.folder / "own"
    gate.configure(ControlPath=line)
    subprocess.run(["ssh", "-MNf", "lab"], check=True, capture_output=True)
    try:
        before = gate.logins()
        with Engine("ssh://lab").asked("it") as client:
            assert client.ping()
        assert gate.logins() == before
    finally:
        subprocess.run(["ssh", "-O", "exit", "lab"], check=True, capture_output=True)


COUNTING = """
number=0
while [ $number -lt 200 ]; do echo $number; number=$((number + 1)); sleep 0.03; done
"""


def test_the_line_drops_and_nothing_is_lost_or_doubled(
    gate: Gate, container_lab: ContainerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://lab")
    command = [sys.executable, "-c", LAUNCH, container_lab.image, "", COUNTING]
    stays = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: any(file.stat().st_size for file in Store().folder.rglob("rank_0.out")), 60, "its first lines")
    for _ in range(4):
        time.sleep(1.2)
        gate.sshd.drop_sessions()
    said, _ = stays.communicate(timeout=90)
    assert stays.returncode == 0, said
    [task] = next(Store().all()).tasks
    lines = (task.folder / "rank_0.out").read_text().split()
    assert lines == [str(number) for number in range(200)]
    until(gate.idle, PERSIST + 5, "the end of all ssh")


@pytest.mark.parametrize("number", ["SIGTERM", "SIGKILL"])
def test_no_ssh_outlives_the_launcher(number: str, gate: Gate, container_lab: ContainerLab) -> None:
    env = {**os.environ, "DOCKER_HOST": "ssh://lab"}
    launch = [sys.executable, str(SCRIPT), container_lab.image, "60"]
    process = subprocess.Popen(launch, env=env, cwd=SCRIPT.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: any(left(container_lab, record.id) for record in Store().all()), 60, "its container")
    assert not gate.idle()
    process.send_signal(signal.Signals[number])
    process.wait(60)
    until(gate.idle, PERSIST + 5, "the end of all ssh")
    [record] = Store().all()
    container_lab.command("rm", "-f", *left(container_lab, record.id).split())


def refused(host: str) -> str:
    start = time.monotonic()
    with pytest.raises(LaunchError) as error, Engine(host).asked("it"):
        pass
    assert time.monotonic() - start < 10
    assert isinstance(error.value, TunnelError)
    return str(error.value)


def test_what_ssh_will_not(gate: Gate, lab_folder: Path, tmp_path: Path) -> None:
    known, other = tmp_path / "known_hosts", make_key(tmp_path / "other")
    known.touch()
    gate.configure(UserKnownHostsFile=known)
    said = refused("ssh://lab")
    assert "no engine answers at ssh://lab: Host key verification failed." in said
    assert "try: ssh lab (it asks; compare the fingerprint" in said
    gate.sshd.know(other)
    gate.configure()
    assert "HOST IDENTIFICATION HAS CHANGED" in refused("ssh://lab") or "verification failed" in refused("ssh://lab")
    gate.sshd.know()

    gate.configure(IdentityFile=other)
    said = refused("ssh://lab")
    assert "Permission denied (publickey" in said
    assert "`ssh lab docker version` must work without being asked anything" in said
    assert "`ssh -l ada -p 2222 lab docker version`" not in said
    locked = make_key(tmp_path / "locked", "a passphrase")
    gate.configure(IdentityFile=locked)
    assert "ssh-add KEY" in refused("ssh://lab")

    gate.configure(Port=1)
    assert re.search(r"Connection refused\n  try: is it up, and the port right\? ssh lab", refused("ssh://lab"))
    gate.configure("NoSuchWord yes")
    assert "Bad configuration option: nosuchword" in refused("ssh://lab")
    gate.configure()
    assert re.search("(?i)could not resolve hostname no-such-host.invalid", refused("ssh://no-such-host.invalid"))


def test_what_is_not_there_behind_ssh(
    gate: Gate, container_lab: ContainerLab, make_sshd: Callable[..., Sshd], monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.configure(User=require_user().pw_name)
    said = refused("ssh://lab")
    assert "permission denied" in said
    assert "sudo usermod -aG docker $USER, there" in said

    gate.sshd = make_sshd(more="SetEnv DOCKER_HOST=unix:///nonexistent.sock")
    gate.configure()
    said = refused("ssh://lab")
    assert "/nonexistent.sock" in said
    assert "systemctl start docker there" in said

    gate.sshd = make_sshd(more="SetEnv PATH=/nonexistent")
    gate.configure()
    said = refused("ssh://lab")
    assert "docker: No such file or directory" in said or "docker: command not found" in said
    assert "install docker there" in said

    (gate.folder / "programs" / "ssh").unlink()
    monkeypatch.setenv("PATH", str(gate.folder / "programs"))
    assert "install openssh-client here" in refused("ssh://lab")


@pytest.mark.parametrize("pam", [True])
def test_an_ssh_that_would_ask_is_refused_at_once(pam: bool, gate: Gate, make_sshd: Callable[..., Sshd]) -> None:
    gate.sshd = make_sshd(pam=pam)
    gate.configure(PreferredAuthentications="keyboard-interactive", KbdInteractiveAuthentication="yes")
    assert "Permission denied" in refused("ssh://lab")


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"DOCKER_HOST": "shs://me@gpu-server"}, "DOCKER_HOST is 'shs://me@gpu-server'(.|\n)*try: 'ssh', before ://"),
        ({"DOCKER_HOST": "me@gpu-server"}, "DOCKER_HOST is 'me@gpu-server'(.|\n)*try: ssh://me@gpu-server"),
        ({"DOCKER_HOST": "ssh://me@gpu-server:port"}, "'ssh://me@gpu-server:port' is no address of a host"),
        ({"DOCKER_HOST": "ssh://gpu-server/path"}, "no address of a host"),
        ({"DOCKER_CONTEXT": "theirz"}, "no context 'theirz'\n  set at: DOCKER_CONTEXT\n  try: docker context ls"),
    ],
)
def test_what_is_no_address(gate: Gate, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ExecutorError, match=words), Engine(None).asked("it"):
        pass


@pytest.mark.parametrize(
    "text", ["{broken", "[]", '{"Endpoints": {}}', '{"Endpoints": {"docker": {}}}', '{"Endpoints": 1}']
)
def test_a_context_that_is_broken(gate: Gate, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    gate.context("theirs", "ssh://lab")
    [meta] = gate.docker.glob("contexts/meta/*/meta.json")
    meta.write_text(text)
    monkeypatch.setenv("DOCKER_CONTEXT", "theirs")
    with pytest.raises(ExecutorError, match=rf"(cannot be read|has no endpoint|has no address)(.|\n)*set at: {meta}"):
        address()
    monkeypatch.delenv("DOCKER_CONTEXT")
    assert address() == "unix:///var/run/docker.sock"
    (gate.docker / "config.json").write_text("{broken")
    with pytest.raises(ExecutorError, match=r"cannot be read(.|\n)*config\.json"):
        address()


def test_an_address_is_found_as_docker_finds_it(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    gate.context("theirs", "ssh://lab")
    (gate.docker / "config.json").write_text(json.dumps({"currentContext": "gone"}))
    with pytest.raises(ExecutorError, match="no context 'gone'"):
        address()
    monkeypatch.setenv("DOCKER_CONTEXT", "theirs")
    assert address() == "ssh://lab"
    monkeypatch.setenv("DOCKER_HOST", "127.0.0.1:2375")
    assert address() == "tcp://127.0.0.1:2375"
    monkeypatch.delenv("DOCKER_HOST")
    monkeypatch.setenv("DOCKER_CONTEXT", "default")
    assert address() == "unix:///var/run/docker.sock"


@pytest.mark.parametrize("way", WAYS)
def test_a_task_runs_whole_over_tls(
    way: str, gate: Gate, container_lab: ContainerLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = container_lab.certificates
    variables = {"DOCKER_CERT_PATH": str(folder), "DOCKER_TLS_VERIFY": "1"}
    with container_lab.secure() as host:
        proofs = [f"{name}={folder / name}.pem" for name in ("ca", "cert", "key")]
        if "context" not in way.lower():
            for name, value in variables.items():
                monkeypatch.setenv(name, value)
        settings = choose(gate, way, host, monkeypatch, *proofs)
        name = launch(container_lab, "sleep 2; echo done", **settings)
        known = {"DOCKER_CONFIG": str(gate.docker)} if "context" in way.lower() else variables
        if known is variables:
            said = elsewhere("status", name)
            assert f"the engine at {host} speaks TLS" in said
            assert "DOCKER_CERT_PATH=" in said
        until(lambda: "succeeded" in elsewhere("status", name, env=known), 60, "its end")
        assert "done" in elsewhere("logs", name, env=known)
        assert left(container_lab, name) == ""


def test_what_tls_will_not(gate: Gate, container_lab: ContainerLab, monkeypatch: pytest.MonkeyPatch) -> None:
    with container_lab.secure() as host:
        gate.context("unknown", host, f"ca={container_lab.certificates / 'ca.pem'}")  # it does not say who we are
        with (
            pytest.raises(LaunchError, match=r"(?s)do not trust each other.*try: .*cert\.pem"),
            Engine(host).asked("it"),
        ):
            pass
        subprocess.run(["docker", "context", "rm", "unknown"], check=True, capture_output=True)
        proofs = [f"{name}={container_lab.certificates / name}.pem" for name in ("cert", "key")]
        gate.context("unsure", host, *proofs)  # nor who it is
        with (
            pytest.raises(LaunchError, match=r"(?s)certificate verify failed.*try: .*ca\.pem"),
            Engine(host).asked("it"),
        ):
            pass
        subprocess.run(["docker", "context", "rm", "unsure"], check=True, capture_output=True)
        gate.context("trusting", host, *proofs, "skip-tls-verify=true")
        with Engine(host).asked("it") as client:
            assert client.ping()
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    monkeypatch.setenv("DOCKER_CERT_PATH", "/nonexistent")
    with pytest.raises(ExecutorError, match="DOCKER_CERT_PATH is '/nonexistent'"), Engine(None).asked("it"):
        pass


def test_prune_does_not_take_a_misspelt_engine_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "shs://gpu-server")
    done = subprocess.run([COMMAND, "experiment", "prune"], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "shs://gpu-server" in done.stderr and "Traceback" not in done.stderr
