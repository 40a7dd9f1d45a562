"""Commands and files, here and over a real sshd: what is typed arrives, what is written is whole."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from executors.tunnel import LocalTunnel, SSHTunnel, Tunnel
from launcher.errors import TunnelError
from tests.labs.machine import require_packages, until
from tests.labs.sshd import Sshd

HOSTILE = [
    "with space",
    "quo'te\"",
    "new\nline\n",
    "; touch hacked",
    "$(touch hacked) `touch hacked`",
    "ünïcödé 実験",
    "-rf",
    "--",
    "a\\b\\\\c",
    "*",
    "~",
    "!!",
    "",
    "&& exit 3 #",
    "\udcff",  # a byte that is no UTF-8, as Python holds it
]


@pytest.fixture(params=["here", "ssh"])
def tunnel(request: pytest.FixtureRequest, sshd: Sshd, lab_folder: Path, tmp_path: Path) -> Iterator[Tunnel]:
    """A tunnel to a job folder that is empty. That of the server is the lab's user's, here it is ours."""
    if request.param == "here":
        yield LocalTunnel(job_dir=str(tmp_path / "jobs"))
        return
    made = SSHTunnel("lab", ssh_config=sshd.ssh_config(), job_dir=f"{sshd.home}/{tmp_path.name}")
    yield made
    made.run(["rm", "-rf", made.job_dir], timeout=10)
    made.close()


def test_arguments_arrive_as_they_are(tunnel: Tunnel) -> None:
    done = tunnel.run(["printf", "%s\\0", *HOSTILE], timeout=10)
    assert done.status == 0
    assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in HOSTILE]
    assert done.stderr == b""


def test_outputs_and_input_of_any_size_at_once(tunnel: Tunnel) -> None:
    data = os.urandom(10_000_000)
    copy = 'tee /dev/stderr | tee -a /dev/stderr; printf "%s" "$1" >&2; exit 7'
    done = tunnel.run(["sh", "-c", copy, "sh", "end"], input=data, timeout=60)
    assert done.status == 7
    assert done.stdout == data
    assert len(done.stderr) == 2 * len(data) + 3
    assert done.stderr.endswith(b"end")


def test_a_command_need_not_read_its_input(tunnel: Tunnel) -> None:
    assert tunnel.run(["true"], input=bytes(20_000_000), timeout=20).status == 0


class Slow(io.BytesIO):
    def read(self, size: int | None = -1) -> bytes:
        time.sleep(0.2)
        return super().read(1)


def test_a_command_is_over_when_its_input_is(sshd: Sshd) -> None:
    """Else its end would cross with that of the input, on which sshd ends the connection."""
    source = Slow(b"xyz")
    tunnel = SSHTunnel("lab", ssh_config=sshd.ssh_config(), job_dir=str(sshd.home))
    assert tunnel._run(["true"], source, 10).status == 0
    assert source.tell() == 3


def test_the_status_is_the_commands(tunnel: Tunnel) -> None:
    assert tunnel.run(["sh", "-c", "kill -KILL $$"], timeout=10).status == 128 + signal.SIGKILL
    missing = tunnel.run(["no such program"], timeout=10)
    assert missing.status == 127
    assert b"sh: 1: no such program: not found" in missing.stderr


def test_a_command_that_takes_too_long(tunnel: Tunnel) -> None:
    start = time.monotonic()
    with pytest.raises(TunnelError, match=r"did not end the command within 0.5 s") as raised:
        tunnel.run(["sleep", "30"], timeout=0.5)
    assert time.monotonic() - start < 5
    assert raised.value.lost
    assert tunnel.run(["echo", "on"], timeout=10).stdout == b"on\n"


@pytest.mark.parametrize("argv", ["ls -l", [], ["a\0b"]])
def test_what_is_no_command_is_refused(tunnel: Tunnel, argv: list[str]) -> None:
    with pytest.raises(TunnelError, match="is no command") as raised:
        tunnel.run(argv, timeout=1)
    assert not raised.value.lost


def test_files_come_back_as_they_were_put(tunnel: Tunnel, tmp_path: Path) -> None:
    data = os.urandom(20_000_000)
    for name in (*(word for word in HOSTILE if word), "x" * 255):
        path = f"{tunnel.job_dir}/deep/{name.replace('~', '~x')}"
        tunnel.put(b"old", path)
        tunnel.put(name.encode(errors="surrogateescape"), path)
        assert tunnel.read(path) == name.encode(errors="surrogateescape")
    start = time.monotonic()
    tunnel.put(data, f"{tunnel.job_dir}/large")
    assert tunnel.read(f"{tunnel.job_dir}/large") == data
    assert time.monotonic() - start < 20
    (tmp_path / "source").write_bytes(data)
    tunnel.put(tmp_path / "source", f"{tunnel.job_dir}/copy")
    assert tunnel.run(["cmp", f"{tunnel.job_dir}/large", f"{tunnel.job_dir}/copy"], timeout=10).status == 0
    left = tunnel.run(["find", tunnel.job_dir, "-name", "*.part"], timeout=10)
    assert left.stdout == b""


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755])
def test_files_get_their_mode(tunnel: Tunnel, mode: int) -> None:
    path = f"{tunnel.job_dir}/file"
    tunnel.put(b"old", path, 0o640)
    tunnel.put(b"secret", path, mode)
    assert stat.S_IMODE(os.stat(path).st_mode) == mode


def test_a_file_is_read_from_an_offset(tunnel: Tunnel) -> None:
    path = f"{tunnel.job_dir}/log"
    tunnel.put(b"0123456789", path)
    assert tunnel.read(path, 3) == b"3456789"
    assert tunnel.read(path, 3, 4) == b"3456"
    assert tunnel.read(path, 0, 0) == b""
    assert tunnel.read(path, 10) == tunnel.read(path, 11) == tunnel.read(path, 99, 5) == b""


def test_what_cannot_be_read_or_written(tunnel: Tunnel, tmp_path: Path) -> None:
    tunnel.put(b"", f"{tunnel.job_dir}/file")
    with pytest.raises(FileNotFoundError, match=r"there is no .*/none on "):
        tunnel.read(f"{tunnel.job_dir}/none")
    with pytest.raises(TunnelError, match=r"cannot read .*: is a folder"):
        tunnel.read(tunnel.job_dir, 0, 5)
    with pytest.raises(TunnelError, match=r"cannot write .*: is a folder"):
        tunnel.put(b"", tunnel.job_dir)
    with pytest.raises(TunnelError, match=r"cannot write .*/file/below .*: mkdir: .*(Not a directory|File exists)"):
        tunnel.put(b"", f"{tunnel.job_dir}/file/below")
    with pytest.raises(TunnelError, match=r"cannot read .*nothing, which is to be sent: No such file"):
        tunnel.put(tmp_path / "nothing", f"{tunnel.job_dir}/file")
    with pytest.raises(TunnelError, match="'jobs/x' is no absolute path"):
        tunnel.read("jobs/x")


def test_no_room_there_is_said(tunnel: Tunnel) -> None:
    disk = Path(tunnel.job_dir).parent / f"disk_{os.getpid()}"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=1777", "full", disk], check=True)
    try:
        with pytest.raises(TunnelError, match="No space left on device") as raised:
            tunnel.put(bytes(2**20), f"{disk}/file")
        assert raised.value.hint is not None
        assert raised.value.hint.startswith("make room on")
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)
        disk.rmdir()


def test_a_folder_that_is_not_ours_is_explained(sshd: Sshd, lab_folder: Path) -> None:
    closed = lab_folder / "closed"
    closed.mkdir(mode=0o700, exist_ok=True)
    tunnel = SSHTunnel("lab", ssh_config=sshd.ssh_config(), job_dir=str(closed))
    with pytest.raises(TunnelError) as raised:
        tunnel.put(b"x", f"{closed}/jobs/x")
    assert f"cannot write {closed}/jobs/x on alice@lab: mkdir: cannot create directory" in str(raised.value)
    assert "Permission denied" in str(raised.value)
    assert "set at: tests/executors/test_tunnel.py:" in str(raised.value)
    assert "job_dir='...' for a folder on alice@lab that you may write to" in str(raised.value)
    with pytest.raises(TunnelError, match="Permission denied"):
        tunnel.read(f"{closed}/x")


def test_many_commands_at_once(tunnel: Tunnel) -> None:
    """Each command counts those that run beside it."""
    tunnel.put(b"", f"{tunnel.job_dir}/here/.keep")
    count = 'cd "$1" && : >"$2" && sleep 0.3 && ls | wc -l && rm "$2"'

    def one(number: int) -> int:
        done = tunnel.run(["sh", "-c", count, "sh", f"{tunnel.job_dir}/here", str(number)], timeout=60)
        return int(done.stdout)

    with ThreadPoolExecutor(24) as pool:
        beside = list(pool.map(one, range(24)))
    assert len(beside) == 24
    assert max(beside) > 1
    if isinstance(tunnel, SSHTunnel):
        assert max(beside) <= 8


PUT = """
import sys
from pathlib import Path
from executors.tunnel import *
exec(sys.argv[1])
tunnel.put(Path(sys.argv[2]), sys.argv[3])
"""


def sizes(folder: Path) -> Iterator[int]:
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            yield path.stat().st_size


def test_a_launcher_killed_while_it_sends_leaves_no_half_file(tunnel: Tunnel, tmp_path: Path) -> None:
    path = f"{tunnel.job_dir}/archive"
    tunnel.put(b"old", path)
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(2**29)
    process = subprocess.Popen([sys.executable, "-c", PUT, f"tunnel = {tunnel!r}", str(large), path])
    parts = Path(tunnel.job_dir)
    try:
        until(lambda: any(size > 2**20 for size in sizes(parts)), 30, "the beginning")
        if isinstance(tunnel, SSHTunnel):  # here, it may have come to its end, and its mode, already
            assert [stat.S_IMODE(part.stat().st_mode) for part in parts.glob(".*.part")] == [0o600]
    finally:
        process.kill()
        process.wait()
    until(lambda: not list(parts.glob(".*.part")), 30, "the end")
    if isinstance(tunnel, SSHTunnel):
        assert tunnel.read(path) == b"old"
    else:  # what copies is a process of its own, and goes on
        assert os.stat(path).st_size == 2**29


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"job_dir": "~/jobs"}, r"'~/jobs' is no absolute path; .*\n  set at: .*test_tunnel.py:\d+\n  try: job_dir="),
        ({"host": "two words"}, "SSHTunnel.host is 'two words', which names no host"),
        ({"host": "-oProxyCommand=touch hacked"}, "SSHTunnel.host is '-oProxyCommand=touch hacked'"),
        ({"host": "alice@lab"}, "SSHTunnel.host is 'alice@lab'.*\n.*\n.*user='alice'"),
        ({"user": "-l"}, "SSHTunnel.user is '-l'"),
        ({"port": 0}, "SSHTunnel.port is 0"),
        ({"hots": "lab"}, "SSHTunnel has no attribute 'hots'.*\n.*\n  try: 'host'"),
        ({"identity": "/no/key"}, "there is no key file /no/key"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(TunnelError, match=message):
        SSHTunnel(**{"host": "lab", "job_dir": "/jobs", **settings}).run(["true"], timeout=1)  # type: ignore[arg-type]


def test_a_tunnel_costs_nothing_before_it_is_used() -> None:
    code = "import sys; from executors.tunnel import SSHTunnel; SSHTunnel('lab', job_dir='/jobs').check()\n"
    code += "print('paramiko' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


def test_a_command_that_no_shell_takes_is_refused(sshd: Sshd) -> None:
    tunnel = SSHTunnel("lab", ssh_config=sshd.ssh_config(), job_dir=str(sshd.home))
    with pytest.raises(TunnelError, match="longer than alice@lab takes"):
        tunnel.run(["true", "x" * 130_000], timeout=1)
    assert tunnel.run(["true", "x" * 119_000], timeout=10).status == 0


def test_what_a_login_shell_prints_is_left_out(make_sshd: Callable[..., Sshd]) -> None:
    noisy = make_sshd(more='ForceCommand echo Welcome; echo Warning >&2; exec $SHELL -c "$SSH_ORIGINAL_COMMAND"')
    tunnel = SSHTunnel("lab", ssh_config=noisy.ssh_config(), job_dir=str(noisy.home))
    done = tunnel.run(["sh", "-c", "echo out; echo err >&2"], timeout=10)
    assert (done.stdout, done.stderr) == (b"out\n", b"err\n")
    tunnel.put(b"data", f"{noisy.home}/noisy")
    assert tunnel.read(f"{noisy.home}/noisy") == b"data"


def test_a_login_shell_that_is_not_sh(make_sshd: Callable[..., Sshd]) -> None:
    """csh expands ! and ends a quoted text at the end of a line."""
    require_packages("tcsh")
    server = make_sshd(more='ForceCommand exec tcsh -c "$SSH_ORIGINAL_COMMAND"')
    tunnel = SSHTunnel("lab", ssh_config=server.ssh_config(), job_dir=f"{server.home}/csh")
    for words in (HOSTILE, *([word] for word in HOSTILE)):
        done = tunnel.run(["printf", "%s\\0", *words], timeout=10)
        assert done.stdout.split(b"\0")[:-1] == [os.fsencode(word) for word in words]
    tunnel.put(b"data", f"{tunnel.job_dir}/new\nline!!")
    assert tunnel.read(f"{tunnel.job_dir}/new\nline!!") == b"data"


def test_an_account_that_runs_no_commands(make_sshd: Callable[..., Sshd]) -> None:
    closed = make_sshd(more="ForceCommand echo This account is closed.; exit 1")
    tunnel = SSHTunnel("lab", ssh_config=closed.ssh_config(), job_dir=str(closed.home))
    with pytest.raises(TunnelError, match=r"did not run the command; it said: This account is closed\.") as it:
        tunnel.run(["true"], timeout=10)
    assert not it.value.lost


def test_a_tunnel_without_a_job_dir_says_so() -> None:
    with pytest.raises(
        TunnelError, match=r"SSHTunnel.job_dir is not set(.|\n)*set at: (.|\n)*job_dir='/home/USER/jobs'"
    ):
        SSHTunnel("login").check()
