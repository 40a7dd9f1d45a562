"""What the entrypoints do with a task: show it, ask, run it here or elsewhere, write it down."""

from __future__ import annotations

import functools
import json
import os
import pty
import select
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from command import COMMAND, WORKSPACE, gemma_launch

from experiments.store import Store
from launcher.config import Partial

JOB = ("train", "--factory", "job")
HOSTILE = [
    "two words",
    "a'quote\"s",
    "$(touch pwned); `touch pwned`",
    "-rf",
    "--help",
    "two\nlines of \x1b[31mred\a",
    "~nobody/x",
    "ünïcödé \N{PERFORMING ARTS} \u202e",
    "../../etc",
    "x" * 300,
    "a=b",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a workspace in it."""
    (tmp_path / "gemma_workspace.py").write_text(WORKSPACE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def result(*arguments: str) -> Any:
    done = gemma_launch(*arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_task_runs_as_an_experiment(folder: Path) -> None:
    done = gemma_launch(*JOB, "--yes", "settings.steps=5", "text=changed")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"steps": 5, "words": [], "text": "changed", "rank": "0"}
    assert done.stderr.startswith("workspace gemma_workspace.py\nrecipe    job  (gemma_workspace.py:")
    assert "settings.steps  5          `settings.steps=5` on the command line\n" in done.stderr
    [record] = Store().all()
    assert (record.title, record.status) == ("job", "succeeded")


def test_its_title_is_given() -> None:
    result(*JOB, "-y", "--name", "another")
    assert [record.title for record in Store().all()] == ["another"]


def test_in_this_process_nothing_is_kept_and_stdout_is_the_results() -> None:
    done = gemma_launch(*JOB, "-y", "--direct", "settings=quick(words=few)")
    assert json.loads(done.stdout) == {"steps": 1, "words": ["few"], "text": "nothing", "rank": None}
    assert "working\n" in done.stderr
    assert not list(Store().all())


def test_a_failure_exits_with_1_and_the_ranks_traceback() -> None:
    done = gemma_launch(*JOB, "-y", "fail=true")
    assert (done.returncode, done.stdout) == (1, "")
    assert "task 'work' failed on rank 0: ValueError: told to fail\nTraceback (most recent call last):" in done.stderr
    assert "launcher/cli" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("  try: gemma-launch experiment logs job-")


def test_executors_of_ones_own_and_their_overrides() -> None:
    done = gemma_launch(*JOB, "-y", "--executor", "pair(variable=$x)", "executor.env_vars.OTHER='; true")
    assert done.returncode == 0, done.stderr
    assert "executor  pair(variable=$x)  (LocalExecutor, 2 processes)\n" in done.stderr
    [record] = Store().all()
    plan = json.loads((record.tasks[0].folder / "plan.json").read_text())
    assert (plan["ntasks_per_node"], plan["env"]) == (2, {"VARIABLE": "$x", "OTHER": "'; true"})
    changed = gemma_launch(*JOB, "-y", "--executor", "single", "executor.ntasks_per_node=3", "--dryrun")
    assert "ranks   3 (1 x 3)" in changed.stdout


def test_a_secret_of_an_executor_is_not_shown() -> None:
    done = gemma_launch(*JOB, "-y", "executor.env_vars.HF_TOKEN=sesame")
    assert done.returncode == 0, done.stderr
    dry = gemma_launch(*JOB, "--dryrun", "executor.env_vars.HF_TOKEN=sesame")
    assert "HF_TOKEN=(secret)" in dry.stdout
    assert not any("sesame" in text for text in (done.stdout, done.stderr, dry.stdout, dry.stderr))


def test_the_local_executor_has_as_many_processes_as_the_recipe() -> None:
    dry = gemma_launch(
        "finetune", "--factory", "gemma3_1b(num_nodes=2, num_gpus_per_node=2)", "--dryrun", "data.train_path=a",
        "data.validation_path=a", "resume.restore_config.path=b", "executor.gpus_per_node=0",
    )  # fmt: skip
    assert "ranks   4 (2 x 2)" in dry.stdout, dry.stderr


def test_a_dry_run_starts_nothing(launcher_home: Path) -> None:
    done = gemma_launch(*JOB, "--dryrun", "text=$(true)")
    assert done.returncode == 0
    assert "task work on LocalExecutor" in done.stdout
    assert "text: $(true)" in done.stdout
    assert not (launcher_home / "experiments").exists()
    here = gemma_launch(*JOB, "--dryrun", "--direct")
    assert "executor  this process" in here.stdout
    assert "working" not in here.stdout + here.stderr


def test_yaml_is_written_and_read_back(folder: Path) -> None:
    shown = gemma_launch(*JOB, "--to-yaml").stdout
    assert gemma_launch(*JOB, "text=other", "--to-yaml", "job.yaml").stdout == ""
    text = Path("job.yaml").read_text()
    assert text == shown.replace("text: nothing", "text: other") != shown
    from launcher.serialization import from_yaml

    task = from_yaml(text)
    assert isinstance(task, Partial)
    assert task.text == "other"
    assert result("train", "--yaml", "job.yaml", "-y", "settings.steps*=3")["steps"] == 9
    assert gemma_launch(*JOB, "--to-yaml=job.yaml", "--yes").returncode == 0
    assert Path("job.yaml").read_text() == shown


def test_a_misspelt_yaml_is_explained() -> None:
    gemma_launch(*JOB, "--to-yaml", "job.yaml")
    Path("job.yaml").write_text(Path("job.yaml").read_text().replace("steps:", "stps:"))
    done = gemma_launch("train", "--yaml", "job.yaml", "-y")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "job.yaml:" in done.stderr
    assert "steps" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_only_texts(text: str, folder: Path) -> None:
    found = result(*JOB, "-y", f"--name={text}", f"text={text}", f"executor.env_vars.VARIABLE={text}")
    assert found["text"] == text
    [record] = Store().all()
    assert record.title == text
    plan = json.loads((record.tasks[0].folder / "plan.json").read_text())
    assert plan["env"]["VARIABLE"] == text
    assert "\a" not in gemma_launch("experiment", "status", record.id).stdout
    assert not list(folder.rglob("pwned"))


@pytest.mark.parametrize("text", HOSTILE[1::2], ids=range(1, len(HOSTILE), 2))
@pytest.mark.parametrize("option", ["--factory=", "--executor=", "--workspace=", "--yaml=", "--to-yaml=", ""])
def test_hostile_names_are_refused(text: str, option: str, folder: Path) -> None:
    given = ["train", "--dryrun"] if option in ("--factory=", "--yaml=") else [*JOB, "--dryrun"]
    if option == "--to-yaml=" and text[0] == "-":
        pytest.skip("click reads what looks like an option as one")
    done = gemma_launch(*given, *([f"{option}{text}"] if option else ["--", text]))
    assert done.returncode == 1, done.stdout
    assert "Traceback" not in done.stderr
    assert "\a" not in done.stderr
    assert len(done.stderr) < 2500
    assert {path.name for path in folder.iterdir()} - {"__pycache__", "launcher_home"} == {"gemma_workspace.py"}


def test_an_argument_that_is_no_text() -> None:
    done = subprocess.run([*map(os.fsencode, COMMAND), b"train", b"text=\xff"], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"argument 2 is not UTF-8 text" in done.stderr


def on_a_terminal(arguments: str, typed: bytes) -> tuple[int, str]:
    """Run the command on a terminal of its own where somebody types; the exit status, and what the screen showed."""
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # where the tests run in the background it is ignored
        signal.alarm(30)
        os.execv(COMMAND[0], [*COMMAND, *shlex.split(arguments)])  # noqa: S606
    shown, answered = b"", False
    try:
        while True:
            quiet = not select.select([terminal], [], [], 0.5)[0]
            if not quiet:
                shown += os.read(terminal, 4096)
            # A Ctrl-C that comes while readline prepares the terminal is heard at the next key: press it again.
            if b"Continue? [y/N]" in shown and (not answered or (quiet and typed == b"\x03")):
                os.write(terminal, typed)
                answered = True
    except OSError:  # how a terminal ends
        pass
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode().replace("\r\n", "\n")


def test_yes_runs_it() -> None:
    status, shown = on_a_terminal("train --factory job", b"y\n")
    assert status == 0
    assert '"steps": 3' in shown
    assert [record.status for record in Store().all()] == ["succeeded"]


@pytest.mark.parametrize("typed", [b"n\n", b"\n"])
def test_no_is_the_default_and_no_error(typed: bytes) -> None:
    status, shown = on_a_terminal("train --factory job --direct", typed)
    assert status == 0
    assert shown.endswith("nothing was started\n")
    assert "working" not in shown


@pytest.mark.parametrize("typed", [b"\x03", b"\x04"], ids=["ctrl-c", "ctrl-d"])
def test_an_interrupted_question_exits_with_130(typed: bytes) -> None:
    status, shown = on_a_terminal("train --factory job", typed)
    assert status == 130
    assert shown.endswith("cancelled\n")
    assert not list(Store().all())


def test_a_ctrl_c_ends_the_run_and_exits_with_130() -> None:
    hear = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # in the background it is ignored
    process = subprocess.Popen(
        [*COMMAND, "train", "--factory", "holding", "-y"], stderr=subprocess.PIPE, preexec_fn=hear
    )
    until = time.monotonic() + 20
    while not any(path.read_text() for path in Path.cwd().rglob("rank_0.out")):
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert errors.endswith(b"cancelled\n")
    assert b"Traceback" not in errors
    assert [record.status for record in Store().all()] == ["cancelled"]


def test_a_name_makes_an_experiment_of_what_would_run_here() -> None:
    done = gemma_launch("import", "source=nowhere", "output=out", "--name", "mine", "--dryrun")
    assert "task import_checkpoint on LocalExecutor" in done.stdout
    assert gemma_launch("import", "source=nowhere", "output=out", "--dryrun").stdout.startswith(
        "recipe    gemma_models"
    )
