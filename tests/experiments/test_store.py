"""The folder is the truth."""

import json
import os
import resource
from pathlib import Path

import pytest

from executors.base import Failure, Status
from experiments.owner import this_process
from experiments.store import ExperimentRecord, Store, TaskRecord, home, new_id, slug
from launcher.errors import StoreError

HOSTILE = [
    "a'b\"c",
    "two\nlines",
    "; rm -rf $HOME",
    "$(touch x)",
    "`x`",
    "--help",
    "ünïcödé 実験",
    "../../etc",
    "x" * 300,
    " ",
]


def made(title: str = "t", tasks: int = 1) -> ExperimentRecord:
    return Store().create(new_id(title), title, [{"name": f"task {n}", "folder": f"task-{n}"} for n in range(tasks)])


def test_home(monkeypatch: pytest.MonkeyPatch, launcher_home: Path) -> None:
    assert home() == launcher_home
    monkeypatch.delenv("GEMMA_LAUNCHER_HOME")
    assert home() == Path.home() / ".gemma-launcher"


@pytest.mark.parametrize("title", HOSTILE)
def test_any_title_is_data(title: str, launcher_home: Path) -> None:
    record = made(title)
    assert record.folder.parent == launcher_home / "experiments"
    assert len(record.folder.name) < 80
    assert Store().find(title).title == title
    assert Store().find(record.id[:-2]).id == record.id


def test_slug() -> None:
    assert slug("Gemma 3: SFT (v2)") == "gemma-3-sft-v2"
    assert slug("実験") == "experiment"
    assert slug("a" * 39 + " b") == "a" * 39


def test_status_is_read_from_the_events() -> None:
    task = made().tasks[0]
    for event, status in [("queued", Status.QUEUED), ("started", Status.RUNNING), ("succeeded", Status.SUCCEEDED)]:
        task.append(event)
        assert task.status is status
    assert [event["event"] for event in task.events()] == ["queued", "started", "succeeded"]


def test_a_failure_is_kept_whole() -> None:
    task = made().tasks[0]
    assert task.failure is None
    task.append("failed", rank=3, cause="ValueError: no", traceback="tb\nlines")
    assert task.failure == Failure(rank=3, cause="ValueError: no", traceback="tb\nlines")


def test_what_nobody_looks_after_is_lost() -> None:
    task = made().tasks[0]
    assert task.status is Status.LOST  # its launcher died before it wrote anything
    line = {"time": 0.0, "event": "started", "owner": {**this_process(), "started": "before the last reboot"}}
    (task.folder / "events.jsonl").write_text(json.dumps(line) + "\n")
    assert task.status is Status.LOST
    line["event"] = "succeeded"
    (task.folder / "events.jsonl").write_text(json.dumps(line) + "\n")
    assert task.status is Status.SUCCEEDED


def test_a_torn_last_event_does_not_count() -> None:
    task = made().tasks[0]
    task.append("started")
    with open(task.folder / "events.jsonl", "a") as file:
        file.write('{"time": 1, "event": "succ')
    assert task.status is Status.RUNNING


def test_the_experiment_is_as_its_tasks_are() -> None:
    record = made(tasks=3)
    for events, status in [
        (("succeeded", "queued", "failed"), Status.QUEUED),
        (("succeeded", "started", "failed"), Status.RUNNING),
        (("succeeded", "cancelled", "failed"), Status.FAILED),
        (("succeeded", "cancelled", "cancelled"), Status.CANCELLED),
        (("succeeded", "succeeded", "succeeded"), Status.SUCCEEDED),
    ]:
        for task, event in zip(record.tasks, events, strict=True):
            details = {"rank": 0, "cause": "", "traceback": ""} if event == "failed" else {}
            task.append(event, **details)
        assert record.status is status


def test_newest_first_and_the_newest_that_fits() -> None:
    records = [made("sft one"), made("sft two"), made("other")]
    for age, record in enumerate(records):
        os.utime(record.folder / "experiment.json", ns=(0, 10**18 + age))
    assert [record.title for record in Store().all()] == ["other", "sft two", "sft one"]
    assert Store().find("sft").title == "sft two"
    assert Store().find("sft one").title == "sft one"


def test_unknown_names_the_nearest() -> None:
    made("gemma-sft")
    with pytest.raises(StoreError, match="no experiment 'gema-sft'") as caught:
        Store().find("gema-sft")
    assert "'gemma-sft'" in (caught.value.hint or "")
    for query in ("", "x" * 5000, "../..", "\0", "--"):
        with pytest.raises(StoreError, match="there is no experiment"):
            Store().find(query)


def test_tasks_by_name() -> None:
    record = made(tasks=2)
    assert record.task().name == "task 0"
    assert record.task("task 1").name == "task 1"
    with pytest.raises(StoreError, match="has no task 'tsk 1'; it has task 0, task 1"):
        record.task("tsk 1")


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GEMMA_LAUNCHER_HOME", str(tmp_path / "file"))
    with pytest.raises(StoreError, match="cannot be written") as caught:
        made()
    assert "GEMMA_LAUNCHER_HOME" in (caught.value.hint or "")
    assert list(Store().all()) == []


def test_newer_and_broken_experiments_are_named_and_do_not_hide_the_rest() -> None:
    newer, broken, good = made("newer"), made("broken"), made("good")
    (newer.folder / "experiment.json").write_text('{"version": 99}')
    (broken.folder / "experiment.json").write_text("{")
    (good.folder.parent / "still-being-made").mkdir()
    assert [record.title for record in Store().all()] == ["good"]
    with pytest.raises(StoreError, match="of version 99; this launcher reads up to 1"):
        Store().find(newer.id)
    with pytest.raises(StoreError, match="cannot be read"):
        Store().find(broken.id)


def test_an_event_that_the_disk_has_no_room_for_leaves_no_half(tmp_path: Path) -> None:
    task = TaskRecord("one", tmp_path)
    task.append("queued")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "events.jsonl").stat().st_size + 10, before[1]))
    try:
        with pytest.raises(OSError, match=r"No space left on device: '.*events\.jsonl'"):
            task.append("started")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    task.append("failed", rank=None, cause="full")
    assert [event["event"] for event in task.events()] == ["queued", "failed"]


def test_a_folder_that_cannot_be_written_whole_is_not_left(launcher_home: Path) -> None:
    tasks = [{"name": str(number), "folder": str(number)} for number in range(100)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            Store().create("e-1", "e", tasks)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(Store().folder.iterdir()) == []
