"""What is shown while a task runs: plain lines without a terminal, a bar on a real one."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import sample_tasks

import launcher as run
from experiments.progress import describe

SCRIPT = """
import sys
sys.path.insert(0, {samples!r})
import launcher as run, sample_tasks
if __name__ == "__main__":
    run.run(run.Partial(sample_tasks.write_metrics, steps=2), name="a [bold]title")
"""


def test_numbers() -> None:
    metrics = {"step": 3, "loss": 2.1037, "lr": 1e-4, "tokens_per_second": 3100.4, "val_loss": 2.0}
    assert describe(metrics) == "loss 2.104  lr 1.0e-04  3,100 tokens/s  val 2.000"
    assert describe({"loss": None, "step": 1}) == ""


def test_plain_lines_end_with_the_last_step(capfd: pytest.CaptureFixture[str]) -> None:
    run.run(run.Partial(sample_tasks.write_metrics, steps=2), progress=False)
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("experiment write-metrics-")
    assert lines[-2] == "write_metrics: step 2/2  loss 1.000  lr 1.0e-04  val 1.500"
    assert lines[-1].endswith(": succeeded")


def test_a_task_without_metrics_shows_none(capfd: pytest.CaptureFixture[str]) -> None:
    run.run(run.Partial(sample_tasks.report_rank), progress=False)
    assert len(capfd.readouterr().err.splitlines()) == 2


def test_a_terminal_gets_a_bar(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(samples=str(Path(sample_tasks.__file__).parent)))
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "160"}
    launched = subprocess.Popen([sys.executable, str(script)], stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # the terminal's other end was closed: how Linux says end of file here
        pass
    os.close(ours)
    assert launched.wait() == 0
    text = shown.decode()
    assert "━" in text
    assert "2/2" in text
    assert "loss 1.000  val 1.500" in text


def test_a_launcher_whose_stderr_is_closed_runs_all_the_same(tmp_path: Path) -> None:
    script = tmp_path / "launch.py"
    script.write_text(SCRIPT.format(samples=str(Path(sample_tasks.__file__).parent)))
    done = subprocess.run(["sh", "-c", '"$0" "$1" 2>&- >&-', sys.executable, str(script)], check=False)
    assert done.returncode == 0
