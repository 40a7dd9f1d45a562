"""The first process of a container: it starts the ranks, ends the others when one fails, and says how each ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from launcher import ranks
from tests.labs.machine import until

PROGRAM = """
import os, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1]).parent
(folder / ("up_" + os.environ["RANK"])).touch()
what = os.environ.get("WHAT_" + os.environ["RANK"], "0")
if what == "wait":
    time.sleep(60)
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(what))
"""


def start(folder: Path, count: int, *, node: int = 0, **what: str) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    (folder / "program.py").write_text(PROGRAM)
    argv = [
        sys.executable,
        ranks.__file__,
        str(count),
        sys.executable,
        str(folder / "program.py"),
        str(folder / "task"),
    ]
    return subprocess.Popen(argv, env={**os.environ, "NODE_RANK": str(node), **what})


def told(folder: Path, node: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"node_{node}.json").read_text())
    return found


def test_every_rank_has_its_place_and_its_end(tmp_path: Path) -> None:
    assert start(tmp_path, 2, node=1).wait(20) == 0
    assert sorted(rank for rank, status, _ in told(tmp_path, 1)["exits"] if status == 0) == [2, 3]


def test_the_first_to_fail_ends_the_others_and_gives_its_status(tmp_path: Path) -> None:
    assert start(tmp_path, 2, WHAT_0="wait", WHAT_1="9").wait(20) == 9
    assert [(rank, status) for rank, status, _ in told(tmp_path)["exits"]] == [(1, 9), (0, -15)]
    assert start(tmp_path / "again", 2, WHAT_0="wait", WHAT_1="kill").wait(20) == 137


def test_the_end_of_one_that_fails_at_once_is_seen(tmp_path: Path) -> None:
    """It has ended before the first process, on a busy machine, comes to note that it was started."""
    (tmp_path / "busy.py").write_text(
        "import os, runpy, subprocess, sys\n"
        "class Slow(subprocess.Popen):\n"
        "    def __init__(self, *arguments, **options):\n"
        "        super().__init__(*arguments, **options)\n"
        "        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)\n"
        "subprocess.Popen = Slow\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    argv = [sys.executable, str(tmp_path / "busy.py"), ranks.__file__, "2", sys.executable, "-c", "exit(3)"]
    assert subprocess.run([*argv, str(tmp_path / "task")], timeout=60, check=False).returncode == 3
    assert [(rank, status) for rank, status, _ in told(tmp_path)["exits"]] == [(0, 3), (1, 3)]


def test_a_node_ends_when_another_has_failed(tmp_path: Path) -> None:
    waiting = start(tmp_path, 1, node=1, WHAT_1="wait")
    until(lambda: (tmp_path / "up_1").exists(), 20, "its rank")
    assert start(tmp_path, 1, node=0, WHAT_0="3").wait(20) == 3
    assert waiting.wait(20) == 143


def test_who_asks_it_to_end_is_obeyed_and_told_of(tmp_path: Path) -> None:
    process = start(tmp_path, 1, WHAT_0="wait")
    until(lambda: (tmp_path / "up_0").exists(), 20, "its rank")
    process.terminate()
    assert process.wait(20) == 143
    assert told(tmp_path)["asked"] == "SIGTERM"
