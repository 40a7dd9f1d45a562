"""The benchmark measures what it says; what it measures is nobody's promise."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_row_is_there(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.launch", "--only", "ours", "--quick", "--folder", tmp_path / "bench"]
    done = subprocess.run(
        [*command, "--json", tmp_path / "figures.json"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert [row["name"] for row in rows] == [
        "import",
        "import of Partial, LocalExecutor, Experiment",
        "a Partial in this process",
        "the same through LocalExecutor",
        "from a task's last file to its end seen",
        "3 tasks in one Experiment",
        "3 tasks in one Experiment: CPU",
        "3 tasks in one Experiment: peak memory (PSS)",
        "experiment list, 20 past, no index yet",
        "experiment list, 20 past",
        "experiment status, 20 past",
    ]
    assert all(list(row["values"]) == ["gemma-launcher"] for row in rows)
    assert rows[-1]["name"] in done.stdout


def test_work_that_was_not_done_is_not_fast(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from benchmarks import launch, tools\n"
        "bench = launch.Bench([tools.here(tools.OURS)], Path(sys.argv[1]), 1, 2, 1)\n"
        "(bench.folder / 'work/work.py').write_text('def touch(path): pass')\n"
        "bench._once(bench.tools[0], 'local', 1)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "gemma-launcher, local: 0 of 1 tasks ran" in done.stderr


def test_a_cost_is_that_of_everything_a_command_starts(tmp_path: Path) -> None:
    burn = "import time, sys; data = bytearray(50_000_000)\nwhile time.process_time() < 0.3: pass"
    # It leaves its child running, whose end nobody waits for but the one who measures.
    leave = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {burn!r}])"
    code = (
        "import json, os, sys; from pathlib import Path; from benchmarks.measure import measure\n"
        "cost = measure([sys.executable, '-c', sys.argv[1]], folder=Path('/'), env=os.environ, log=Path(os.devnull),\n"
        "               interval=0.01)\n"
        "print(json.dumps(vars(cost)))"
    )
    costs = [
        json.loads(
            subprocess.run(
                [sys.executable, "-c", code, program], cwd=ROOT, capture_output=True, text=True, check=True
            ).stdout
        )
        for program in (burn, leave)
    ]
    assert costs[0]["cpu"] > 0.3 and costs[1]["cpu"] > 0.3
    assert costs[0]["memory"] > 50_000_000
    assert costs[0]["pid"] != os.getpid()
