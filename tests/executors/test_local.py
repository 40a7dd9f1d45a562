"""LocalExecutor with real processes: ranks, failures, endings."""

import json
import os
import socket
import stat
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import sample_tasks
from processes import has_ended
from submitted import Held, Submitted, make_plan, run

from executors.base import JobState, Status
from executors.local import LocalExecutor
from executors.processes import free_port
from launcher.config import Partial
from launcher.errors import ExecutorError
from launcher.script import Script
from launcher.worker import JobFiles


def test_ranks_see_the_contract(tmp_path: Path) -> None:
    state = run(
        LocalExecutor(ntasks_per_node=2, env_vars={"MARK": "a b\n$(c)"}), tmp_path, Partial(sample_tasks.report_rank)
    )
    assert state == JobState(status=Status.SUCCEEDED)
    files = JobFiles(tmp_path)
    shown = json.loads(files.result.read_text())
    assert {name: shown[name] for name in shown if name != "MASTER_PORT"} == {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MARK": "a b\n$(c)",
    }
    assert (
        f"RANK=1 WORLD_SIZE=2 LOCAL_RANK=1 LOCAL_WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={shown['MASTER_PORT']}"
        in (files.stdout(1).read_text())
    )
    assert files.stderr(1).read_text() == "to stderr\n"


def test_torchrun_gives_its_ranks_the_same(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    executor = LocalExecutor(ntasks_per_node=2, launcher="torchrun", env_vars={"MARK": "m"})
    assert run(executor, tmp_path, Partial(sample_tasks.report_rank)).status is Status.SUCCEEDED
    shown = json.loads(JobFiles(tmp_path).result.read_text())
    assert (shown["RANK"], shown["WORLD_SIZE"], shown["LOCAL_WORLD_SIZE"], shown["MARK"]) == ("0", "2", "2", "m")
    assert "RANK=1" in JobFiles(tmp_path).stdout(1).read_text()


SIGKILLED = "killed by SIGKILL (by kill -9, or for want of memory)"


@pytest.mark.parametrize(
    ("launcher", "how", "cause", "shown"),
    [
        (None, "raise", "ValueError: rank 1 gave up", "in end_badly"),
        (None, "exit", "SystemExit: 3", "sys.exit(3)"),
        (None, "SIGSEGV", "killed by SIGSEGV", "in end_badly"),
        (None, "SIGKILL", SIGKILLED, "last words"),
        ("torchrun", "raise", "ValueError: rank 1 gave up", "in end_badly"),
        ("torchrun", "SIGKILL", SIGKILLED, "last words"),
    ],
)
def test_one_failing_rank_ends_the_others_and_is_named(
    tmp_path: Path, launcher: Any, how: str, cause: str, shown: str
) -> None:
    executor = LocalExecutor(ntasks_per_node=3, launcher=launcher)
    state = run(executor, tmp_path, Partial(sample_tasks.end_badly, how=how))
    assert state.status is Status.FAILED
    assert state.failure is not None
    assert (state.failure.rank, state.failure.cause) == (1, cause)
    assert shown in state.failure.traceback
    assert not JobFiles(tmp_path).failure(0).exists()  # it was ended: it did not give up by itself


def test_a_failure_does_not_wait_for_a_rank_that_ignores_sigterm(tmp_path: Path) -> None:
    executor = LocalExecutor(ntasks_per_node=2, grace=0.2)
    held = Held(executor, tmp_path, stubborn=True)
    os.kill(held.pids[2], 9)
    [state] = held.submitted.wait()
    held.wait_until_gone()
    assert state.status is Status.FAILED
    assert state.failure is not None
    assert state.failure.rank in (0, 1)
    assert "SIGKILL" in state.failure.cause


@pytest.mark.parametrize(
    ("launcher", "stubborn"), [(None, False), (None, True), ("torchrun", False), ("torchrun", True)]
)
def test_cancel_ends_ranks_and_their_children(tmp_path: Path, launcher: Any, stubborn: bool) -> None:
    executor = LocalExecutor(ntasks_per_node=2, launcher=launcher, grace=0.2 if stubborn else 30.0)
    held = Held(executor, tmp_path, stubborn=stubborn)
    assert held.submitted.states == [JobState(status=Status.RUNNING)]
    assert held.submitted.cancel() == [JobState(status=Status.CANCELLED)]
    held.wait_until_gone()


def test_what_a_finished_rank_left_running_is_ended(tmp_path: Path) -> None:
    executor = LocalExecutor()
    code = "import subprocess; print(subprocess.Popen(['sleep', '1000']).pid)"
    assert run(executor, tmp_path, Partial(exec, code)).status is Status.SUCCEEDED
    pid = int(JobFiles(tmp_path).stdout(0).read_text())
    try:
        watch = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert has_ended(watch)
    os.close(watch)


def test_secrets_are_private_while_it_runs_and_gone_after(tmp_path: Path) -> None:
    executor = LocalExecutor(ntasks_per_node=2, env_vars={"HF_TOKEN": "hf_abcdef", "SHOWN": "s"})
    held = Held(executor, tmp_path)
    files = JobFiles(tmp_path)
    assert stat.S_IMODE(files.secrets.stat().st_mode) == 0o600
    assert json.loads(files.secrets.read_text()) == {"HF_TOKEN": "hf_abcdef"}
    for pid in held.pids[::2]:
        assert b"hf_abcdef" not in Path(f"/proc/{pid}/environ").read_bytes()  # what `ps e` shows
    held.submitted.cancel()
    held.wait_until_gone()
    executor.clean(held.submitted.handles[0].plan)
    assert not files.secrets.exists()


def test_the_task_gets_its_secrets(tmp_path: Path) -> None:
    executor = LocalExecutor(env_vars={"HF_TOKEN": "hf_abcdef"})
    assert run(executor, tmp_path, Partial(sample_tasks.echo_variable, "HF_TOKEN")).status is Status.SUCCEEDED
    assert json.loads(JobFiles(tmp_path).result.read_text()) == "fedcba_fh"


def test_a_python_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExecutorError, match="python is '/nowhere/python', which is no program"):
        LocalExecutor(python="/nowhere/python").check()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")  # it went away after the launcher had started
    state = run(LocalExecutor(), tmp_path, Partial(sample_tasks.report_rank))
    assert state.failure is not None
    assert "it could not be started" in state.failure.cause
    assert "'/nowhere/python'" in state.failure.cause


def test_another_python_runs_the_ranks(tmp_path: Path) -> None:
    python = tmp_path / "my python"
    python.symlink_to(os.path.realpath(sys.executable))  # without the virtual environment around it
    task = Partial(sample_tasks.interpreter)
    assert run(LocalExecutor(python=str(python)), tmp_path / "t", task).status is Status.SUCCEEDED
    assert json.loads(JobFiles(tmp_path / "t").result.read_text()) == str(python)


def test_torchrun_without_torch_is_refused_before_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    executor = LocalExecutor(launcher="torchrun")
    with pytest.raises(ExecutorError, match="needs torch") as caught:
        Submitted(executor, make_plan(executor, tmp_path, Partial(sample_tasks.report_rank)))
    assert "launcher=None" in str(caught.value)


def test_several_tasks_at_once_have_ports_of_their_own(tmp_path: Path) -> None:
    executor = LocalExecutor()
    folders = [tmp_path / name for name in ("a", "b", "c")]
    plans = [make_plan(executor, folder, Partial(sample_tasks.report_rank)) for folder in folders]
    assert [state.status for state in Submitted(executor, *plans).wait()] == [Status.SUCCEEDED] * 3
    results = [json.loads(JobFiles(folder).result.read_text()) for folder in folders]
    assert len({result["MASTER_PORT"] for result in results}) == 3


@pytest.mark.parametrize("launcher", [None, "torchrun"])
def test_nodes_are_groups_of_processes_here(tmp_path: Path, launcher: Any) -> None:
    executor = LocalExecutor(nodes=2, ntasks_per_node=2, launcher=launcher)
    assert executor.ranks == 4
    assert run(executor, tmp_path, Partial(sample_tasks.report_rank)).status is Status.SUCCEEDED
    lines = [JobFiles(tmp_path).stdout(rank).read_text() for rank in range(4)]
    for rank, line in enumerate(lines):
        assert f"RANK={rank} WORLD_SIZE=4 LOCAL_RANK={rank % 2} LOCAL_WORLD_SIZE=2" in line


def test_a_free_port_is_free() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", free_port()))


def test_threads_do_not_outlive_their_task(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    run(LocalExecutor(ntasks_per_node=2), tmp_path, Partial(sample_tasks.end_badly, how="raise"))
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_a_script_runs_as_every_rank_with_its_own_arguments_and_variables(tmp_path: Path) -> None:
    hostile = ["a b", "'\"", "$(touch x)", "; exit 9", "-n", "ü\n"]
    text = 'import os, sys; print(os.environ["RANK"], os.environ["MARK"], sys.argv[1:])'
    script = Script(inline=text, entrypoint="python -u", args=hostile, env={"MARK": "its own"})
    executor = LocalExecutor(ntasks_per_node=2, env_vars={"MARK": "the executor's"})
    assert run(executor, tmp_path, script).status is Status.SUCCEEDED
    for rank in (0, 1):
        assert JobFiles(tmp_path).stdout(rank).read_text() == f"{rank} its own {hostile}\n"


@pytest.mark.parametrize(
    ("text", "cause"), [("echo last words >&2; exit 3", "exited with status 3"), ("kill -SEGV $$", "killed by SIGSEGV")]
)
def test_a_scripts_exit_status_is_the_tasks(tmp_path: Path, text: str, cause: str) -> None:
    state = run(LocalExecutor(), tmp_path, Script(inline=text))
    assert state.failure is not None
    assert (state.status, state.failure.rank, state.failure.cause) == (Status.FAILED, 0, cause)
    assert state.failure.traceback == ("last words" if "exit" in text else "")


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    state = run(LocalExecutor(), tmp_path, Script(inline="x", entrypoint="python3.99"))
    assert state.failure is not None
    assert state.failure.cause.startswith("FileNotFoundError")
    assert "python3.99" in state.failure.cause


def test_a_script_finds_the_interpreter_and_the_pipes_that_a_shell_would_give_it(tmp_path: Path) -> None:
    script = Script(inline="command -v python; yes | head -1; echo ${PIPESTATUS[0]}")
    assert run(LocalExecutor(), tmp_path, script).status is Status.SUCCEEDED
    sigpipe = "141"  # a shell's number for a death by SIGPIPE: the program was not left ignoring it
    expected = [f"{Path(sys.executable).parent}/python", "y", sigpipe]
    assert JobFiles(tmp_path).stdout(0).read_text().splitlines()[-2:] == expected[-2:]
    if sys.prefix != sys.base_prefix:
        assert JobFiles(tmp_path).stdout(0).read_text().splitlines() == expected


def test_without_room_for_another_thread_nothing_starts_and_it_says_so(tmp_path: Path) -> None:
    before = threading.stack_size(2**46)  # more than there is
    try:
        state = run(LocalExecutor(ntasks_per_node=2), tmp_path, Script(inline=f"touch {tmp_path}/ran"))
    finally:
        threading.stack_size(before)
    assert (state.status, (tmp_path / "ran").exists()) == (Status.FAILED, False)
    assert state.failure is not None
    assert "it could not be started: can't start new thread" in state.failure.cause


def test_no_variable_of_the_users_is_taken_for_one_of_ours(tmp_path: Path) -> None:
    env = {"GEMMA_LAUNCHER_PARENT": "1", "GEMMA_LAUNCHER_JOB_DIR": "/nowhere"}
    assert run(LocalExecutor(env_vars=env), tmp_path, Script(inline="true")).status is Status.SUCCEEDED


def test_a_text_that_is_no_utf8_reaches_its_program(tmp_path: Path) -> None:
    assert run(LocalExecutor(), tmp_path, Script(inline="echo '\udcff'")).status is Status.SUCCEEDED
    assert JobFiles(tmp_path).stdout(0).read_bytes() == b"\xff\n"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_ending_a_task_ends_what_has_left_its_group(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    keep = os.open(fifo, os.O_RDWR)
    script = Script(inline=f"setsid sh -c 'echo $$ > {fifo}; sleep 600' & sleep 600")
    submitted = Submitted(LocalExecutor(), make_plan(LocalExecutor(), tmp_path, script))
    with os.fdopen(keep) as pipe:
        watch = os.pidfd_open(int(pipe.readline()))
    [state] = submitted.cancel()
    assert state.status is Status.CANCELLED
    assert has_ended(watch)
    os.close(watch)
