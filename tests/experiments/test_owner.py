"""Whether a process is still the one that was written down."""

import os
import subprocess
from pathlib import Path

from experiments.owner import alive, start_time, this_process


def test_this_process_is_alive_and_another_of_its_number_is_not() -> None:
    me = this_process()
    assert me["pid"] == os.getpid()
    assert alive(me)
    assert not alive({**me, "started": "some other time"})


def test_a_process_that_ended_is_not_alive_nor_is_its_zombie() -> None:
    child = subprocess.Popen(["sleep", "1000"])
    owner = {**this_process(), "pid": child.pid, "started": start_time(child.pid) or ""}
    assert alive(owner)  # type: ignore[arg-type]
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not alive(owner)  # type: ignore[arg-type]
    child.wait()
    assert start_time(child.pid) is None


def test_a_command_with_brackets_and_spaces_is_read_right(tmp_path: Path) -> None:
    program = tmp_path / "a) S (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(program), "1000"])
    try:
        assert (start_time(child.pid) or "").split()[-1].isdigit()
        assert int((start_time(child.pid) or "").split()[-1]) >= int(this_process()["started"].split()[-1])
    finally:
        child.kill()
        child.wait()


def test_another_host_is_believed() -> None:
    assert alive({"host": "elsewhere.example", "pid": 1, "started": "long ago"})


def test_a_fork_of_a_launcher_is_another_process() -> None:
    this_process()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(this_process()["pid"] == os.getpid()).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 100) == b"True"
    for descriptor in (reading, writing):
        os.close(descriptor)
