"""The worker, started by path as an executor starts it, without any of our packages."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anywhere
import pytest
import sample_tasks

from launcher import worker
from launcher.config import Partial
from launcher.serialization import encode
from launcher.worker import JobFiles

SAMPLES = str(Path(sample_tasks.__file__).parent)


def run_worker(folder: Path, call: Any, *, sys_path: list[str] | None = None, **env: str) -> int:
    """The exit status of one rank. `-S` (no site-packages): the worker has the standard library alone."""
    spec = {
        "version": 1,
        "experiment": "e-1",
        "name": "t",
        "sys_path": sys_path or [SAMPLES],
        "code": None,
        "folder": str(Path.cwd()),
        "moved": {},
        "call": call,
    }
    files = JobFiles(folder)
    files.task.write_text(json.dumps(spec))
    command = [sys.executable, "-S", str(Path(worker.__file__).resolve()), str(files.task)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, env={**clean, **env}, check=False).returncode


def test_result_and_output_lie_in_the_folder(tmp_path: Path) -> None:
    assert (
        run_worker(tmp_path, encode(Partial(sample_tasks.report_rank)), RANK="0", WORLD_SIZE="1", MASTER_PORT="7") == 0
    )
    files = JobFiles(tmp_path)
    assert json.loads(files.result.read_text())["MASTER_PORT"] == "7"
    assert files.stdout(0).read_text().startswith("RANK=0 WORLD_SIZE=1")
    assert files.stderr(0).read_text() == "to stderr\n"
    environment = json.loads(files.environment.read_text())
    assert environment["python"] == ".".join(map(str, sys.version_info[:3]))
    assert environment["executable"] == sys.executable


def test_only_rank_0_keeps_a_result(tmp_path: Path) -> None:
    assert run_worker(tmp_path, encode(Partial(sample_tasks.report_rank)), RANK="1") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"task.json", "rank_1.out", "rank_1.err"}


def test_a_failure_is_reported_without_the_workers_own_frames(tmp_path: Path) -> None:
    call = encode(Partial(sample_tasks.end_badly, how="raise"))
    assert run_worker(tmp_path, call, RANK="1") == 1
    report = json.loads(JobFiles(tmp_path).failure(1).read_text())
    assert (report["rank"], report["type"], report["message"]) == (1, "ValueError", "rank 1 gave up")
    assert "sample_tasks.py" in report["traceback"]
    assert "worker.py" not in report["traceback"]
    assert report["traceback"] in JobFiles(tmp_path).stderr(1).read_text()


@pytest.mark.parametrize(("code", "status"), [(None, 0), (0, 0), (7, 7), ("no such data", 1)])
def test_system_exit_keeps_its_status(tmp_path: Path, code: Any, status: int) -> None:
    assert run_worker(tmp_path, encode(Partial(sample_tasks.leave, code)), RANK="0") == status
    assert JobFiles(tmp_path).failure(0).exists() == bool(status)


def test_a_rank_that_has_saved_and_wants_to_go_on_has_not_failed(tmp_path: Path) -> None:
    assert run_worker(tmp_path, encode(Partial(sample_tasks.leave, worker.RESUME)), RANK="0") == 75
    assert not JobFiles(tmp_path).failure(0).exists()


TASK_OF_SRUN = {"SLURM_PROCID": "4", "SLURM_NTASKS": "5", "SLURM_LOCALID": "0", "SLURM_NODEID": "2"}
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "LOCAL_WORLD_SIZE")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"SLURM_TASKS_PER_NODE": "2(x2),1"}, ["4", "5", "0", "2", "1"]),
        ({"SLURM_TASKS_PER_NODE": "2(x3)"}, ["4", "5", "0", "2", "2"]),
        ({"SLURM_TASKS_PER_NODE": "8(x3)", "SLURM_STEP_TASKS_PER_NODE": "3,2,1"}, ["4", "5", "0", "2", "1"]),
        ({"SLURM_TASKS_PER_NODE": "9", "LOCAL_WORLD_SIZE": "7"}, ["4", "5", "0", "2", "7"]),
        ({}, ["4", "5", "0", "2", None]),
        # A step of a larger job; and ranks that somebody else has named, inside an allocation.
        ({"SLURM_STEP_NUM_TASKS": "6"}, ["4", "6", "0", "2", None]),
        ({"RANK": "1", "WORLD_SIZE": "3"}, ["1", "3", None, None, None]),
    ],
)
def test_a_task_of_srun_takes_its_place_from_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: list[str | None]
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_") or name in PLACE]:
        monkeypatch.delenv(name)
    assert run_worker(tmp_path, encode(Partial(sample_tasks.variables, list(PLACE))), **TASK_OF_SRUN, **given) == 0
    rank = expected[0]
    shown = JobFiles(tmp_path).stdout(int(rank or 0)).read_text()
    assert json.loads(shown) == dict(zip(PLACE, expected, strict=True))


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    assert run_worker(tmp_path, {"$partial": "nowhere.at_all:f", "args": {}}, RANK="0") == 1
    report = json.loads(JobFiles(tmp_path).failure(0).read_text())
    assert (report["type"], report["message"]) == ("ModuleNotFoundError", "No module named 'nowhere'")


def test_a_task_of_another_version_is_refused(tmp_path: Path) -> None:
    task = {"version": 99, "experiment": "e", "sys_path": ["."], "call": None}
    (tmp_path / "task.json").write_text(json.dumps(task))
    subprocess.run([sys.executable, worker.__file__, str(tmp_path / "task.json")], check=False)
    assert "version 99" in json.loads(JobFiles(tmp_path).failure(0).read_text())["message"]


def test_what_json_cannot_hold_is_said_and_is_no_failure(tmp_path: Path) -> None:
    assert run_worker(tmp_path, encode(Partial(sample_tasks.Opaque)), RANK="0") == 0
    assert not JobFiles(tmp_path).result.exists()
    assert "the return value (Opaque) is not kept" in JobFiles(tmp_path).stderr(0).read_text()


def test_a_result_that_no_place_would_bring_back_is_said(tmp_path: Path) -> None:
    assert run_worker(tmp_path, encode(Partial(anywhere.give_back, "x" * 7_000_001)), RANK="0") == 0
    assert not JobFiles(tmp_path).result.exists()
    assert "it has 7,000,003 characters, and may have 7,000,000" in JobFiles(tmp_path).stderr(0).read_text()


def test_the_users_modules_are_found_and_ours_do_not_hide_them(tmp_path: Path) -> None:
    """A user's own config.py, run.py or worker.py is theirs, although the worker's folder has such files too."""
    for name in ("config", "run", "worker", "errors"):
        (tmp_path / f"{name}.py").write_text(f"def f():\n    return 'the user\\'s {name}'\n")
    for name in ("config", "run", "worker", "errors"):
        job = tmp_path / f"job_{name}"
        job.mkdir()
        assert run_worker(job, {"$partial": f"{name}:f", "args": {}}, sys_path=[str(tmp_path)], RANK="0") == 0
        assert json.loads(JobFiles(job).result.read_text()) == f"the user's {name}"


def test_our_modules_cannot_be_imported_by_a_bare_name(tmp_path: Path) -> None:
    assert run_worker(tmp_path, {"$partial": "errors:nearest", "args": {}}, RANK="0") == 1
    assert json.loads(JobFiles(tmp_path).failure(0).read_text())["message"] == "No module named 'errors'"


def test_secrets_reach_the_task_and_nothing_that_is_written(tmp_path: Path) -> None:
    JobFiles(tmp_path).secrets.write_text(json.dumps({"HF_TOKEN": "hf_abcdef"}))
    assert run_worker(tmp_path, encode(Partial(sample_tasks.echo_variable, "HF_TOKEN")), RANK="0") == 0
    assert json.loads(JobFiles(tmp_path).result.read_text()) == "fedcba_fh"
    assert run_worker(tmp_path, encode(Partial(sample_tasks.fail_with_variable, "HF_TOKEN")), RANK="0") == 1
    JobFiles(tmp_path).secrets.unlink()
    written = "".join(path.read_text() for path in tmp_path.iterdir())
    assert "cannot log in with (HF_TOKEN)" in written
    assert "hf_abcdef" not in written


def test_a_guarded_script_does_not_run_again_and_its_classes_work(tmp_path: Path) -> None:
    script = tmp_path / "my-train.py"
    script.write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Point:\n    x: int\n"
        "def task(point):\n    return [__name__, point == Point(3)]\n"
        "if __name__ == '__main__':\n    raise SystemExit('ran again')\n"
    )
    point = {"$config": {"file": str(script), "name": "Point"}, "args": {"x": 3}}
    call = {"$partial": {"file": str(script), "name": "task"}, "args": {"point": point}}
    assert run_worker(tmp_path, call, RANK="0") == 0
    assert json.loads(JobFiles(tmp_path).result.read_text()) == [worker.SCRIPT_MODULE, True]


def test_a_crash_leaves_its_traceback(tmp_path: Path) -> None:
    assert run_worker(tmp_path, encode(Partial(sample_tasks.end_badly, how="SIGSEGV")), RANK="1") == -11
    text = JobFiles(tmp_path).stderr(1).read_text()
    assert "Segmentation fault" in text
    assert "in end_badly" in text


def test_an_error_that_explains_itself_is_reported_without_its_traceback(tmp_path: Path) -> None:
    script = tmp_path / "task.py"
    script.write_text(
        "from launcher.errors import DataError\n"
        "def task():\n    raise DataError('data.jsonl:3: not JSON', hint='one JSON object a line')\n"
    )
    call = {"$partial": {"file": str(script), "name": "task"}, "args": {}}
    assert run_worker(tmp_path, call, sys_path=[str(Path(worker.__file__).parents[1])], RANK="0") == 1
    failure = json.loads(JobFiles(tmp_path).failure(0).read_text())
    assert failure["message"] == "data.jsonl:3: not JSON\n  try: one JSON object a line"
    assert failure["traceback"] == "  try: one JSON object a line"
    assert "line 3, in task" in JobFiles(tmp_path).stderr(0).read_text()


ODD = """
import os, sys
def close(): sys.stdout.close(); sys.stderr.close(); return object
def forget(): sys.stdout = sys.stderr = None; return object
def leave(): sys.exit(256)
class Mute(Exception):
    def __str__(self): raise RuntimeError("nothing to say")
def fail(): raise Mute
def path(): return sys.path
"""


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("close", 0, "the return value (type) is not kept"),
        ("forget", 0, "the return value (type) is not kept"),
        ("leave", 1, "SystemExit: 256"),  # a process would make 0 of it
        ("fail", 1, "odd.Mute: <exception str() failed>"),
    ],
)
def test_whatever_a_task_does_to_its_process_its_end_is_told_right(
    tmp_path: Path, name: str, status: int, said: str
) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    call = {"$partial": f"odd:{name}", "args": {}}
    assert run_worker(tmp_path, call, sys_path=[str(tmp_path)]) == status
    files = JobFiles(tmp_path)
    assert said in files.stderr(0).read_text()
    assert files.failure(0).exists() == (status != 0)


def test_a_python_that_leaves_out_the_scripts_folder_loses_nothing(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(ODD)
    call, here = {"$partial": "odd:path", "args": {}}, str(tmp_path)
    assert run_worker(tmp_path, call, sys_path=[here], PYTHONSAFEPATH="1", PYTHONPATH=f"{here}/first") == 0
    assert json.loads(JobFiles(tmp_path).result.read_text())[:2] == [here, f"{here}/first"]
