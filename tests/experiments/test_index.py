"""The folders are the truth, whatever becomes of the index."""

import random
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from executors.base import Status
from experiments import index
from experiments.store import ExperimentRecord, Store, new_id

LIST = [sys.executable, "-c", "from launcher.cli import main; main(['experiment', 'list'])"]


def made(title: str, *events: str) -> ExperimentRecord:
    record = Store().create(new_id(title), title, [{"name": "task", "folder": "task"}])
    for event in events:
        record.tasks[0].append(event)
    return record


def listed() -> str:
    done = subprocess.run(LIST, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def statuses() -> dict[str, Status]:
    return {summary.title: summary.status for summary in Store().summaries()}


def rows(home: Path) -> dict[str, str]:
    with sqlite3.connect(home / "index.sqlite") as database:
        return dict(database.execute("SELECT title, status FROM experiments"))


def test_the_list_is_the_same_without_it(launcher_home: Path) -> None:
    for title, events in {
        "one": ["succeeded"],
        "two": ["failed"],
        "three": ["started"],
        "fo\nur": ["cancelled"],
    }.items():
        made(title, *events)
    file, expected = launcher_home / "index.sqlite", listed()
    assert len(expected.splitlines()) == 5
    assert rows(launcher_home) == {"one": "succeeded", "two": "failed", "fo\nur": "cancelled"}
    assert listed() == expected

    file.unlink()
    assert listed() == expected == listed()
    for wrong in (b"", b"no database" * 1000, file.read_bytes()[:3000]):
        file.write_bytes(wrong)
        assert listed() == expected
        assert listed() == expected  # what is no database is taken away by one reader, and made anew by the next
        assert len(rows(launcher_home)) == 3
    with sqlite3.connect(file) as database:
        database.execute("PRAGMA user_version = 99")
        database.execute("UPDATE experiments SET title = 'what another version means by it'")
    assert listed() == expected
    assert "one" in rows(launcher_home)
    file.unlink()
    file.mkdir()  # cannot be opened, for root either
    assert listed() == expected


def test_it_is_used(launcher_home: Path) -> None:
    made("one", "succeeded")
    assert statuses() == {"one": Status.SUCCEEDED}
    with sqlite3.connect(launcher_home / "index.sqlite") as database:
        database.execute("UPDATE experiments SET title = 'from the index'")
    assert statuses() == {"from the index": Status.SUCCEEDED}


def test_what_changed_is_read_again(launcher_home: Path) -> None:
    over, running = made("over", "succeeded"), made("running", "started")
    gone = made("gone", "failed")
    assert set(rows(launcher_home) if statuses() else ()) == {"over", "gone"}
    running.tasks[0].append("failed", rank=0, cause="", traceback="")
    over.tasks[0].append("started")
    shutil.rmtree(gone.folder)
    made("new", "cancelled")
    expected = {"over": Status.RUNNING, "running": Status.FAILED, "new": Status.CANCELLED}
    assert statuses() == expected
    assert rows(launcher_home) == {
        "over": "succeeded",
        "running": "failed",
        "new": "cancelled",
    }  # the first is not used
    file = running.folder / "experiment.json"
    file.write_text(file.read_text().replace("running", "renamed"))
    (launcher_home / "experiments/still-being-made").mkdir()
    assert set(statuses()) == {"over", "renamed", "new"}


def test_a_lost_experiment_is_not_over(launcher_home: Path) -> None:
    made("lost")
    made("title that is no text: \udc80", "succeeded")
    assert set(statuses().values()) == {Status.LOST, Status.SUCCEEDED}
    assert not (launcher_home / "index.sqlite").exists()


def test_busy_is_no_error(launcher_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PATIENCE", 0.05)
    made("one", "succeeded")
    assert list(statuses()) == ["one"]
    inode = (launcher_home / "index.sqlite").stat().st_ino
    other = sqlite3.connect(launcher_home / "index.sqlite", isolation_level=None)
    for lock in ("IMMEDIATE", "EXCLUSIVE"):
        other.execute(f"BEGIN {lock}")
        made(lock, "succeeded")
        assert lock in statuses()
        other.execute("COMMIT")
    other.close()
    assert (launcher_home / "index.sqlite").stat().st_ino == inode
    assert set(statuses()) == set(rows(launcher_home)) == {"one", "IMMEDIATE", "EXCLUSIVE"}


def test_many_at_once_and_killed_at_any_instant(launcher_home: Path) -> None:
    for number in range(150):
        made(f"run {number}", "succeeded")
    code = (
        "import pathlib, sys\n"
        "from experiments.store import Store\n"
        "file = pathlib.Path(sys.argv[1])\n"
        "while True:\n"
        "    assert len(Store().summaries()) == 150\n"
        "    index = __import__('sqlite3').connect(file, timeout=0.2)\n"
        "    try:\n"
        "        index.execute('DELETE FROM experiments'); index.commit()\n"  # there is always something to write
        "    except index.OperationalError: pass\n"
        "    index.close()\n"
        "    print('.', flush=True)\n"
    )
    file = launcher_home / "index.sqlite"
    expected = listed()
    chance = random.Random(0)  # noqa: S311
    for _ in range(8):
        processes = [
            subprocess.Popen([sys.executable, "-c", code, file], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(2)
        ]
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == b".\n"
        time.sleep(chance.random() / 20)
        for process in processes:
            process.kill()
            assert process.communicate()[1] == b""
        assert [summary.status for summary in Store().summaries()] == [Status.SUCCEEDED] * 150
    assert listed() == expected
    assert len(rows(launcher_home)) == 150


def test_found_by_title_or_how_it_begins(launcher_home: Path) -> None:
    records = [made(title, "succeeded") for title in ("sft one", "sft two", "other")]
    for _ in range(2):  # from folders, then from the index
        assert Store().find("sft").title == "sft two"
        assert Store().find("sft one").id == records[0].id
        assert Store().find_title("sft two").id == records[1].id
        assert [summary.title for summary in Store().summaries(2)] == ["other", "sft two"]
    shutil.copytree(records[2].folder, records[2].folder.with_name("a-copy"))
    assert Store().find("a-copy").title == "other"
    assert len(list(Store().all())) == 4
