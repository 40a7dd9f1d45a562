"""The fixtures of the one suite of behaviours; see behaviours.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.executors import behaviours
from tests.executors.behaviours import Ended, Where


@pytest.fixture(scope="module", params=behaviours.PLACES)
def place(request: pytest.FixtureRequest, lab_folder: Path) -> Iterator[Where]:
    folder = behaviours.new_folder(lab_folder, request.param)
    with behaviours.PLACES[request.param](request, folder) as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.env.items():
            patch.setenv(name, value)
        yield found


@pytest.fixture(scope="module")
def showcase(place: Where, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GEMMA_LAUNCHER_HOME", str(tmp_path_factory.mktemp("showcase")))
        patch.chdir(behaviours.SAMPLES)
        yield behaviours.show(place)


@pytest.fixture
def where(place: Where, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Where:
    """Makes executors of one kind: the only thing that a test knows of them."""
    behaviours.except_where_written(request, request.node.callspec.params["place"])
    monkeypatch.chdir(behaviours.SAMPLES)
    return place


@pytest.fixture
def ended(where: Where, showcase: dict[str, Ended], request: pytest.FixtureRequest) -> Ended:
    """The task that this test `runs`."""
    return showcase[request.node.originalname]


@pytest.fixture
def folder(where: Where, request: pytest.FixtureRequest) -> Path:
    """The test's own, which its tasks see as well; with the lock of what holds."""
    found = behaviours.new_folder(where.folder, request.node.originalname)
    (found / "lock").touch()
    return found


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """What a behaviour's test skips, it does not test: that needs a line in EXCEPTIONS."""
    report = yield
    if "where" in getattr(item, "fixturenames", ()) and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped, and not in EXCEPTIONS: {report.longrepr}"
    return report
