"""Who has which GPU: between tasks, between launchers, and after one was killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from executors.machine import Machine, gpus

HOLDER = """
import sys
from executors.machine import MACHINE
print(MACHINE.lend([(1, 1)])[0].gpus[0], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that was told to use these: it asks nobody whether they are there."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-9f/1")


@pytest.mark.parametrize(
    ("named", "found"), [("", []), ("0", ["0"]), ("1, 3", ["1", "3"]), ("2,-1,3", ["2"]), ("GPU-a,0", ["GPU-a", "0"])]
)
def test_the_variable_names_what_there_is(named: str, found: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert gpus() == found


def test_a_gpu_is_lent_once(two_gpus: None) -> None:
    machine = Machine()
    [first] = machine.lend([(1, 1)]) or []
    [second] = machine.lend([(1, 1)]) or []
    assert {*first.gpus, *second.gpus} == {"4", "GPU-9f/1"}
    assert machine.lend([(1, 1)]) is None
    machine.release(first)
    assert machine.lend([(2, 1)]) is None  # and what it took on the way is free again
    assert [lease.gpus for lease in machine.lend([(1, 1)]) or []] == [first.gpus]


def test_several_get_all_or_nothing(two_gpus: None) -> None:
    machine = Machine()
    [one] = machine.lend([(1, 1)]) or []
    assert machine.lend([(1, 1), (1, 1)]) is None
    machine.release(one)
    both = machine.lend([(1, 1), (1, 1)]) or []
    assert len({gpu for lease in both for gpu in lease.gpus}) == 2


def test_more_than_there_are_is_all_of_them(two_gpus: None) -> None:
    assert [lease.gpus for lease in Machine().lend([(8, 8)]) or []] == [("4", "GPU-9f/1")]


def test_another_launchers_gpu_is_its_own_until_it_ends_however_it_ends(two_gpus: None) -> None:
    held = [
        subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    machine = Machine()
    try:
        assert {process.stdout.readline().strip() for process in held if process.stdout} == {"4", "GPU-9f/1"}
        assert machine.lend([(1, 1)]) is None
    finally:
        for process in held:
            process.kill()
            process.communicate()
    assert machine.lend([(2, 1)]) is not None


def test_a_job_that_launches_shares_out_its_own(
    two_gpus: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = Machine().lend([(2, 1)])
    assert outer is not None
    monkeypatch.setenv("GEMMA_LAUNCHER_JOB_DIR", str(tmp_path))
    assert Machine().lend([(1, 1)]) is not None


def test_without_gpus_tasks_take_turns_on_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    machine = Machine()
    all_of_them = len(os.sched_getaffinity(0))
    [lease] = machine.lend([(1, all_of_them + 5)]) or []  # more than there are: they are shared
    assert machine.lend([(0, 1)]) is None
    machine.release(lease)
    assert len(machine.lend([(0, 1)] * (all_of_them + 1)) or []) == all_of_them + 1
