"""Which rank of a hang is named, and how."""

from pathlib import Path

import pytest

from executors.failures import Exit, first_failure
from executors.hangs import find_hang
from launcher.worker import JobFiles

LOOP = '  File "/code/train.py", line 5 in fit\n  File "/code/train.py", line 9 in <module>\n'
WAITS = '  File "/x/site-packages/torch/distributed/c10d.py", line 30 in all_reduce\n' + LOOP
READS = '  File "/code/data.py", line 7 in read\n  File "/code/data.py", line 3 in batches\n' + LOOP
SAVES = '  File "/code/save.py", line 2 in save\n' + LOOP
OTHER_THREAD = 'Thread 0x00007f1 (most recent call first):\n  File "/lib/threading.py", line 1 in wait\n\n'


def hang(folder: Path, ranks: dict[int, str], *, at: float = 100.0, timeout: str = "0:30:00") -> JobFiles:
    """Stacks as faulthandler writes them; "" for a rank that could not."""
    files = JobFiles(folder)
    for rank, frames in ranks.items():
        main = f"Thread 0x00007f{rank} (most recent call first):\n{frames}"
        text = f"Timeout ({timeout})!\n{OTHER_THREAD}{main}written at {at + rank}\n"
        files.stacks(rank).write_text(text if frames else "")
    return files


@pytest.mark.parametrize(
    ("ranks", "blamed", "cause"),
    [
        (
            {0: WAITS, 1: READS, 2: WAITS, 3: WAITS},
            1,
            "rank 1 at code/data.py:3 batches > code/data.py:7 read, the others at distributed/c10d.py:30 all_reduce",
        ),
        (  # of two, the one that is in no collective
            {0: READS, 1: WAITS},
            0,
            "rank 0 at code/data.py:3 batches > code/data.py:7 read, the others at distributed/c10d.py:30 all_reduce",
        ),
        (
            {0: WAITS, 1: READS, 2: READS, 3: SAVES, 4: WAITS, 5: WAITS, 6: READS, 7: WAITS},
            3,
            "rank 3 at code/save.py:2 save, ranks 1-2, 6 at code/data.py:3 batches > code/data.py:7 read, "
            "the others at distributed/c10d.py:30 all_reduce",
        ),
        ({0: WAITS, 1: WAITS}, None, "all 2 ranks at code/train.py:5 fit > distributed/c10d.py:30 all_reduce"),
        (
            {0: WAITS, 1: "", 2: WAITS},
            1,
            "rank 1 left no stacks (its process or node stands still, or it went on), "
            "the others at code/train.py:5 fit > distributed/c10d.py:30 all_reduce",
        ),
        (
            {0: "  <no Python frame>\n", 1: WAITS},
            0,
            "rank 0 at no line of Python, the others at code/train.py:9 <module> > distributed/c10d.py:30 all_reduce",
        ),
    ],
)
def test_who_differs_and_where(tmp_path: Path, ranks: dict[int, str], blamed: int | None, cause: str) -> None:
    found = find_hang(hang(tmp_path, ranks))
    assert found is not None
    assert (found[1].rank, found[1].cause) == (blamed, f"no step in 30 minutes: {cause}")


def test_the_stacks_of_one_rank_of_each_group_are_shown(tmp_path: Path) -> None:
    found = find_hang(hang(tmp_path, {0: WAITS, 1: READS, 2: WAITS}, timeout="0:00:45"))
    assert found is not None
    shown = found[1].traceback
    assert found[1].cause.startswith("no step in 45 seconds: ")
    assert shown.index("rank 1:\n") < shown.index("in read") < shown.index("rank 0:\n") < shown.index("in all_reduce")
    assert "rank 2:" not in shown and "written at" not in shown


def test_ranks_that_take_their_steps_do_not_hang(tmp_path: Path) -> None:
    assert find_hang(JobFiles(tmp_path)) is None
    assert find_hang(hang(tmp_path, {0: "", 1: ""})) is None


@pytest.mark.parametrize(("time", "cause"), [(99.0, "killed by SIGSEGV"), (101.0, "no step in")])
def test_what_follows_from_a_hang_is_not_its_cause(tmp_path: Path, time: float, cause: str) -> None:
    """A rank that had failed before is what the others waited for."""
    failure = first_failure(hang(tmp_path, {0: WAITS, 1: WAITS, 2: ""}), [Exit(2, -11, time), Exit(0, 1, 106.0)])
    assert failure is not None and failure.cause.startswith(cause)
