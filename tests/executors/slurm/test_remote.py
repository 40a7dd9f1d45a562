"""The scripts themselves, and what the answers of a place mean."""

from __future__ import annotations

import subprocess

import pytest

from executors.slurm.limits import minutes, objection, partitions
from executors.slurm.remote import TEMPLATES, answers, listed, text
from launcher.errors import TunnelError
from tests.labs.machine import require_packages

SCRIPTS = ["submission", "survey", "place", "query"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_clean(name: str) -> None:
    require_packages("shellcheck")
    whole = "".join((TEMPLATES / f"{part}.sh").read_text() for part in ("prelude", name))
    unused = "SC2034"  # the user's number, in those that ask nothing of the queue
    argv = ["shellcheck", "--shell=sh", f"--exclude={unused}", "-"]
    done = subprocess.run(argv, input=whole, capture_output=True, text=True, check=False)
    assert done.stdout == ""


@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
@pytest.mark.parametrize("name", [*SCRIPTS, "mirror"])
def test_scripts_are_read_by_any_shell(shell: str, name: str) -> None:
    whole = text("prelude") + text(name)
    assert "\n#" not in whole
    subprocess.run([*shell.split(), "-n", "-c", whole], check=True, timeout=10)


def test_answers_have_words_below_them() -> None:
    assert answers(["id 1", "no", " two", "  lines", "yes"]) == [("id 1", ""), ("no", "two\n lines"), ("yes", "")]


def test_lists_end() -> None:
    assert listed(["a b", "", "\udcff"]) == b"a b\n\n\xff\nend\n"
    with pytest.raises(TunnelError, match="has a line break in it"):
        listed(["a\nb"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90", 90),
        ("1:30", 1.5),
        ("04:00:00", 240),
        ("1-12", 2160),
        ("2-00:30:00", 2910),
        ("UNLIMITED", None),
        ("", None),
    ],
)
def test_time_limits(text: str, expected: float | None) -> None:
    assert minutes(text) == expected


def test_what_a_partition_would_never_run() -> None:
    known = partitions(
        [
            "PartitionName=gpu MaxTime=1-00:00:00 MaxNodes=UNLIMITED TotalNodes=4 State=UP",
            "PartitionName=debug MaxTime=UNLIMITED MaxNodes=1 TotalNodes=4 State=UP",
            "PartitionName=old State=INACTIVE TotalNodes=4",
            "yes",
        ]
    )

    def asked(partition: str | None, **options: str) -> str:
        return objection("".join(f"#SBATCH --{name}={value}\n" for name, value in options.items()), known, partition)

    assert asked("gpu", time="23:00:00", nodes="4") == ""
    assert asked("gpu", time="1-01") == "time=1-01 is more than partition gpu allows (1-00:00:00)"
    assert asked("gpu", time="UNLIMITED") == "time=UNLIMITED is more than partition gpu allows (1-00:00:00)"
    assert asked("debug", time="UNLIMITED") == ""
    assert asked("gpu", nodes="5") == "nodes=5 is more than partition gpu has (4)"
    assert asked("debug", nodes="2", time="99-0") == "nodes=2 is more than partition debug allows (1)"
    assert asked("old") == "partition old is INACTIVE: it starts no jobs"
    assert asked("unknown", nodes="99") == asked(None) == asked("gpu", nodes="2-8") == ""
