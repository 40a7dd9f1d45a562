"""SubmititExecutor on this machine, with the real submitit: its clusters "local" and "debug"."""

from __future__ import annotations

import importlib.util
import json
import os
import pickletools
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sample_tasks
from processes import has_ended
from submitted import Held, Submitted, make_plan, run

import launcher
from executors.base import JobState, Status
from executors.submitit.executor import SubmititExecutor
from launcher.config import Partial
from launcher.errors import ExecutorError
from launcher.script import Script
from launcher.worker import JobFiles


def local(**settings: Any) -> SubmititExecutor:
    return SubmititExecutor(cluster="local", **settings)


@pytest.mark.parametrize(("cluster", "ranks"), [("local", 2), ("debug", 1)])
def test_ranks_see_the_contract_and_the_value_comes_back(tmp_path: Path, cluster: Any, ranks: int) -> None:
    executor = SubmititExecutor(cluster=cluster, ntasks_per_node=ranks, env_vars={"MARK": "a b\n$(c)"})
    before = dict(os.environ)
    assert run(executor, tmp_path, Partial(sample_tasks.report_rank)) == JobState(status=Status.SUCCEEDED)
    files = JobFiles(tmp_path)
    shown = json.loads(files.result.read_text())
    assert {name: shown[name] for name in shown if name != "MASTER_PORT"} == {
        "RANK": "0",
        "WORLD_SIZE": str(ranks),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MARK": "a b\n$(c)",
    }
    assert shown["MASTER_PORT"].isdecimal()
    last = ranks - 1
    assert f"RANK={last} WORLD_SIZE={ranks} LOCAL_RANK={last}" in files.stdout(last).read_text()
    assert files.stderr(last).read_text() == "to stderr\n"
    assert dict(os.environ) == before


def test_its_pickle_holds_a_name_of_ours_and_a_path(tmp_path: Path) -> None:
    run(local(env_vars={"HF_TOKEN": "hf_abcdef"}), tmp_path, Partial(sample_tasks.variables, names=["HF_TOKEN"]))
    assert "hf_abcdef" in JobFiles(tmp_path).stdout(0).read_text()
    [pickled] = (tmp_path / "submitit").glob("*_submitted.pkl")
    texts = {value for _, value, _ in pickletools.genops(pickled.read_bytes()) if isinstance(value, str)}
    assert {"executors.submitit.job", "start", str(tmp_path / "task.json")} <= texts
    assert not any("sample_tasks" in text or "hf_" in text for text in texts)


@pytest.mark.parametrize(
    ("how", "cause", "shown"),
    [
        ("raise", "ValueError: rank 1 gave up", "in end_badly"),
        ("exit", "SystemExit: 3", "sys.exit(3)"),
        ("SIGKILL", "killed by SIGKILL (by kill -9, or for want of memory)", "last words"),
    ],
)
def test_one_failing_rank_ends_the_others_and_is_named(tmp_path: Path, how: str, cause: str, shown: str) -> None:
    state = run(local(ntasks_per_node=3), tmp_path, Partial(sample_tasks.end_badly, how=how))
    assert state.status is Status.FAILED
    assert state.failure is not None
    assert (state.failure.rank, state.failure.cause) == (1, cause)
    assert shown in state.failure.traceback


def test_a_task_that_fails_under_debug_waits_for_no_debugger(tmp_path: Path) -> None:
    state = run(SubmititExecutor(cluster="debug"), tmp_path, Script(inline="echo no >&2; exit 7"))
    assert state.failure is not None
    assert (state.failure.rank, state.failure.cause, state.failure.traceback) == (0, "exited with status 7", "no")


def test_what_submitit_wrote_is_shown_where_the_worker_never_started(tmp_path: Path) -> None:
    torn = "export SUBMITIT_LOCAL_COMMAND=\"sh -c 'echo torn >&2; exit 3'\""
    state = run(local(parameters={"local_setup": [torn]}), tmp_path, Partial(print))
    assert state.failure is not None
    assert state.failure.cause == "it ended before its ranks could say how"
    assert state.failure.traceback == "torn"


def test_a_worker_that_cannot_be_started_says_why_and_debug_waits_for_no_debugger(tmp_path: Path) -> None:
    executor = SubmititExecutor(cluster="debug")
    plan = make_plan(executor, tmp_path, Partial(print))
    plan.files["submitit.json"] = plan.files["submitit.json"].replace("variables", "gone")
    [state] = Submitted(executor, plan).wait()
    assert state.failure is not None
    assert (state.failure.rank, state.failure.cause) == (0, "exited with status 126")
    assert "rank 0 could not be started: KeyError: 'variables'" in state.failure.traceback


@pytest.mark.parametrize("stubborn", [False, True])
def test_cancel_ends_ranks_and_their_children(tmp_path: Path, stubborn: bool) -> None:
    held = Held(local(ntasks_per_node=2, grace=0.2 if stubborn else 30.0), tmp_path, stubborn=stubborn)
    assert held.submitted.states == [JobState(status=Status.RUNNING)]
    assert held.submitted.cancel() == [JobState(status=Status.CANCELLED)]
    held.wait_until_gone()


def test_cancel_ends_what_debug_runs_and_what_waits_for_its_turn(tmp_path: Path) -> None:
    executor = SubmititExecutor(cluster="debug")
    held = Held(executor, tmp_path)
    waiting = Submitted(executor, make_plan(executor, tmp_path / "next", Partial(print)))
    executor.cancel(waiting.handles)
    assert held.submitted.cancel() == [JobState(status=Status.CANCELLED)]
    held.wait_until_gone()
    assert waiting.wait() == [JobState(status=Status.CANCELLED)]
    assert not JobFiles(tmp_path / "next").stdout(0).exists()


def test_secrets_are_private_while_it_runs_and_gone_after(tmp_path: Path) -> None:
    executor = local(env_vars={"HF_TOKEN": "hf_abcdef", "SHOWN": "s"})
    held = Held(executor, tmp_path)
    files = JobFiles(tmp_path)
    assert stat.S_IMODE(files.secrets.stat().st_mode) == 0o600
    for pid in held.pids[::2]:
        assert b"hf_abcdef" not in Path(f"/proc/{pid}/environ").read_bytes()
    everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != files.secrets)
    assert b"hf_abcdef" not in everything and b'"SHOWN": "s"' in everything
    held.submitted.cancel()
    held.wait_until_gone()
    executor.clean(held.submitted.handles[0].plan)
    assert not files.secrets.exists()


def test_a_killed_launcher_takes_its_ranks_along(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from submitted import Submitted, make_plan\n"
        "from executors.submitit.executor import SubmititExecutor; from launcher.script import Script\n"
        "executor, folder = SubmititExecutor(cluster='local'), Path(sys.argv[1])\n"
        "task = Script(inline=f'echo $$ >{folder}/fifo; exec sleep 120')\n"
        "Submitted(executor, make_plan(executor, folder, task)).wait()"
    )
    os.mkfifo(tmp_path / "fifo")
    keep = os.open(tmp_path / "fifo", os.O_RDWR)
    env = {**os.environ, "PYTHONPATH": str(Path(sample_tasks.__file__).parent)}
    started = subprocess.Popen([sys.executable, "-c", code, tmp_path], env=env)
    with os.fdopen(keep) as pipe:
        rank = os.pidfd_open(int(pipe.readline()))
    started.kill()
    started.wait()
    assert has_ended(rank)
    os.close(rank)


def test_near_its_time_limit_it_is_asked_to_save(tmp_path: Path) -> None:
    wait = 'trap "exit 1" TERM; until test -e "$GEMMA_LAUNCHER_JOB_DIR/stop"; do sleep 0.05; done; echo asked; '
    wait += 'echo 7 > "$GEMMA_LAUNCHER_JOB_DIR/saved"; exit 75'
    state = run(local(timeout_min=1), tmp_path, Script(inline=f"kill -USR2 $PPID; {wait}"))
    assert "asked" in JobFiles(tmp_path).stdout(0).read_text()
    assert state.failure is not None
    assert state.failure.cause == "its time was over: it was asked to end, and saved step 7"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cluster": "slrum"}, "'slrum'(.|\n)*try: 'slurm'"),
        ({"parameters": {"mem_bg": 3}}, "given 'mem_bg', which submitit does not have(.|\n)*try: 'mem_gb'"),
        ({"parameters": {"slurm_partion": "p"}}, "try: 'slurm_partition'"),
        ({"parameters": {"partition": "p"}}, "try: 'slurm_partition'"),
        ({"parameters": {"tasks_per_node": 2}}, "another home(.|\n)*try: ntasks_per_node="),
        ({"parameters": {"slurm_comment": "a\nrm -rf x"}}, "line break"),
        ({"parameters": {"slurm_additional_parameters": {"comment": "a\nb"}}}, "line break"),
        ({"parameters": {"mem_gb": "much"}}, '"mem_gb" expected type'),
        ({"parameters": {"mem_gb": object()}}, "not JSON serializable"),
        ({"timeout_min": 1.5}, "timeout_min is 1.5"),
        ({"nodes": 2}, "cluster='local' has one"),
        ({"cluster": "debug", "ntasks_per_node": 2}, "runs one rank(.|\n)*try: cluster='local'"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_submitted(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ExecutorError, match=words):
        local(**settings).check() if "cluster" not in settings else SubmititExecutor(**settings).check()


def test_without_submitit_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "submitit" else find(name, *more)
    )
    with pytest.raises(ExecutorError, match=r"pip install 'gemma-launcher\[submitit\]'"):
        local().check()


def test_no_login_node_has_no_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ExecutorError, match=r"no srun(.|\n)*run\.SlurmExecutor"):
        SubmititExecutor(cluster="slurm").check()


def test_the_import_is_light() -> None:
    code = "import sys, launcher as run; run.SubmititExecutor(cluster='local'); sys.exit('submitit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_experiments_retry_and_depend(tmp_path: Path, launcher_home: Path) -> None:
    executor = local(retries=1)
    with launcher.Experiment("two") as experiment:
        flaky = Partial(sample_tasks.fail_until, path=str(tmp_path / "calls"), attempts=2)
        first = experiment.add(flaky, executor=executor, name="flaky")
        again = Script(inline="echo $GEMMA_LAUNCHER_RESTART")
        experiment.add(again, executor=local(), name="after", dependencies=[first])
        results = experiment.run(progress=False)
    assert results[0].value == 2
    assert JobFiles(results[0].folder / "attempt_1").stdout(0).read_text() == "attempt 1\n"
    assert JobFiles(results[1].folder).stdout(0).read_text() == "0\n"
