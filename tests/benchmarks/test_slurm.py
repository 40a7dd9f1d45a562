"""What a launch on a cluster takes of the line there does not grow with the number of its jobs."""

import json
import subprocess
import sys
from pathlib import Path

from tests.labs.slurm.lab import SlurmLab

ROOT = Path(__file__).parents[2]


def test_many_jobs_take_as_many_commands_as_one(slurm_lab: SlurmLab, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.slurm", "--only", "ours", "--quick", "--counts", "1", "20"]
    done = subprocess.run(
        [*command, "--folder", tmp_path / "bench", "--json", tmp_path / "figures.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "figures.json").read_text())
    cases = [number for number, row in enumerate(rows) if row["name"].startswith(("submit", "status"))]
    found = {}
    for first in cases:
        own = {row["name"].strip(): row["values"]["gemma-launcher"] for row in rows[first : first + 4]}
        found[rows[first]["name"]] = own["connections"], own["remote commands"]
    assert found == {
        "submit 1, first time": (1, 5),  # our packages and the user's are sent
        "submit 1": (1, 3),  # survey, files, submission
        "submit 20": (1, 3),
        "status of 20": (1, 3),  # which jobs, their files, one question
    }
