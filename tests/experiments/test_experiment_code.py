"""The code that an experiment runs: a copy of what the user had when it was launched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import launcher as run
from experiments.provenance import launch_script
from experiments.store import Store
from launcher.serialization import loads
from launcher.worker import SCRIPT_MODULE

LAUNCH = """
import os, sys
import launcher as run
from helper import VALUE
def compute():
    import helper, late
    return [helper.VALUE, late.VALUE, os.getcwd(), helper.__file__, __file__]
if __name__ == "__main__":
    with run.Experiment("code") as experiment:
        local = run.LocalExecutor({executor})
        first = experiment.add(run.Script(inline={inline!r}), executor=local, name="script")
        experiment.add(run.Partial(compute), executor=local, name="compute", dependencies=[first])
        script, task = experiment.run(progress=False)
    print(experiment.id)
"""


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A user's repository: `train.py` in a folder, a helper that was changed since its commit, and ignored data."""
    root = tmp_path / "my repo"
    (root / "work").mkdir(parents=True)
    git(tmp_path, "init", "-q", str(root))
    (root / "work/helper.py").write_text("VALUE = 'committed'\n")
    (root / "work/late.py").write_text("VALUE = 'as launched'\n")
    (root / ".gitignore").write_text("data\n")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "first")
    (root / "work/helper.py").write_text("VALUE = 'dirty'\n")
    (root / "work/data").mkdir()
    (root / "work/data/ignored.txt").write_text("x")
    return root


def launch(repository: Path, inline: str, executor: str = "") -> Path:
    """The experiment's folder, after the launch script ran in `work`."""
    script = repository / "work/train.py"  # not tracked, as a script often is
    script.write_text(LAUNCH.format(inline=inline, executor=executor))
    done = subprocess.run([sys.executable, "train.py"], cwd=script.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Store().get(done.stdout.split()[-1]).folder


def test_it_runs_from_a_copy_with_the_dirty_tree_in_it(repository: Path) -> None:
    work = repository / "work"
    # The first task changes what was launched; the second does not see it.
    folder = launch(repository, f"pwd; ls; echo \"VALUE = 'edited meanwhile'\" > '{work}/late.py'")
    copy = folder / "code/work"
    assert (folder / "script/rank_0.out").read_text().splitlines() == [str(copy), "helper.py", "late.py", "train.py"]
    helper, late, cwd, file, script = json.loads((folder / "compute/result.json").read_text())
    assert (helper, late) == ("dirty", "as launched")
    assert (file, script) == (str(copy / "helper.py"), str(copy / "train.py"))
    assert cwd == str(work)  # a relative path in a recipe means what it means in the terminal
    assert "+VALUE = 'dirty'" in (folder / "code.diff").read_text()
    code = json.loads((folder / "compute/environment.json").read_text())["code"]
    assert (code["folder"], code["dirty"], len(code["commit"])) == (str(repository), True, 40)


def test_in_place_nothing_is_copied(repository: Path) -> None:
    folder = launch(repository, "pwd; ls", executor="packager=run.Packager()")
    assert not (folder / "code").exists()
    listed = (folder / "script/rank_0.out").read_text().splitlines()
    assert listed[0] == str(repository / "work")
    assert "data" in listed


def test_only_what_a_pattern_names(repository: Path) -> None:
    pattern = "packager=run.PatternPackager(include_pattern='*.py', relative_path=os.getcwd())"
    folder = launch(repository, "ls; cat helper.py", executor=pattern)
    copied = {path.name for path in (folder / "code").iterdir()} - {"__pycache__"}
    assert copied == {"helper.py", "late.py", "train.py"}
    assert "dirty" in (folder / "script/rank_0.out").read_text()


def test_a_file_that_does_not_travel_is_named(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / "work/untracked.py").write_text("print('x')\n")
    monkeypatch.chdir(repository / "work")
    experiment = run.Experiment("untracked")
    experiment.add(run.Script("untracked.py"), executor=run.LocalExecutor())
    with pytest.raises(run.LaunchError, match=r"untracked\.py, which is not in the package") as caught:
        experiment.dryrun()
    assert "git add" in (caught.value.hint or "")


def test_a_module_that_does_not_travel_is_named_before_anything_runs(repository: Path) -> None:
    (repository / "work/untracked.py").write_text("def task():\n    return 1\n")
    (repository / "work/train.py").write_text(
        "import launcher as run\nfrom untracked import task\n"
        "if __name__ == '__main__':\n    run.run(run.Partial(task))\n"
    )
    package = repository / "work/package"
    package.mkdir()  # without an __init__.py, as a folder of scripts often is
    (package / "tracked.py").write_text("")
    git(repository, "add", "work/package/tracked.py")
    (package / "started.py").write_text(
        "import launcher as run\ndef task():\n    return 1\n"
        "if __name__ == '__main__':\n    run.run(run.Partial(task))\n"
    )
    for command, module, file in (
        (["train.py"], "untracked", repository / "work/untracked.py"),
        (["-m", "package.started"], "package.started", package / "started.py"),
    ):
        done = subprocess.run(
            [sys.executable, *command], cwd=repository / "work", capture_output=True, text=True, check=False
        )
        assert f"task 'task' uses module {module!r}, and {file} is not in the package" in done.stderr
        assert "try: git add it" in done.stderr
    assert not Store().folder.exists()


def test_a_module_that_is_imported_and_does_not_travel_is_warned_of(repository: Path) -> None:
    """Whether tasks need it cannot be known: here they do not."""
    (repository / "work/plots.py").write_text("")
    (repository / "work/train.py").write_text(
        "import launcher as run\nimport helper\ndef task():\n    return helper.VALUE\n"
        "if __name__ == '__main__':\n    import plots\n"
        "    print(run.run(run.Partial(task)).value)\n    print(run.run(run.Script(inline='ls')).value)\n"
    )
    done = subprocess.run(
        [sys.executable, "train.py"], cwd=repository / "work", capture_output=True, text=True, check=True
    )
    assert done.stdout == "dirty\nNone\n"
    assert done.stderr.count("warning: ") == 1
    assert f"module 'plots' is imported here, and {repository / 'work/plots.py'} is not in the package" in done.stderr
    assert "helper" not in done.stderr


def test_a_configuration_that_was_read_does_not_launch(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading one that names a script loads that script; what is launched afterwards is still launched from here."""
    elsewhere = tmp_path / "elsewhere.py"
    elsewhere.write_text("def task():\n    return 1\n")
    node = {"$partial": {"file": str(elsewhere), "name": "task"}, "args": {}}
    monkeypatch.delitem(sys.modules, SCRIPT_MODULE, raising=False)
    loads(json.dumps({"version": 1, "value": node}))
    assert sys.modules[SCRIPT_MODULE].__file__ == str(elsewhere)
    assert launch_script() is None


def test_executors_that_package_differently_have_a_copy_each(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository / "work")
    some = run.PatternPackager(include_pattern="late.py", relative_path=".")
    with run.Experiment("two") as experiment:
        experiment.add(run.Script(inline="ls"), executor=run.LocalExecutor(), name="all")
        experiment.add(run.Script(inline="ls"), executor=run.LocalExecutor(packager=some), name="some")
        experiment.add(run.Script(inline="ls"), executor=run.LocalExecutor(retries=1), name="all again")
        shown = [(result.folder / "rank_0.out").read_text().split() for result in experiment.run(progress=False)]
    assert shown == [["helper.py", "late.py"], ["late.py"], ["helper.py", "late.py"]]
    assert {path.name for path in experiment.folder.glob("code*")} == {"code", "code.diff", "code.2"}


def test_a_copy_that_cannot_be_made_leaves_no_experiment(repository: Path) -> None:
    (repository / "work/large.bin").write_bytes(bytes(1_000_000))
    git(repository, "add", "work/large.bin")
    (repository / "work/train.py").write_text(
        "import resource\nimport launcher as run\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as on a disk that is full\n"
        "if __name__ == '__main__':\n    run.run(run.Script(inline='ls'))\n"
    )
    command = [sys.executable, "train.py"]
    done = subprocess.run(command, cwd=repository / "work", capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "'work/large.bin' cannot be packaged: [Errno 27] File too large" in done.stderr
    assert list(Store().folder.iterdir()) == []


def test_a_task_may_be_called_as_the_copy_is(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository / "work")
    with run.Experiment("named") as experiment:
        for name in ("code", "code-2"):
            experiment.add(run.Script(inline="ls"), executor=run.LocalExecutor(), name=name)
        shown = [(result.folder / "rank_0.out").read_text().split() for result in experiment.run(progress=False)]
    assert shown == [["helper.py", "late.py"]] * 2


def test_git_is_not_asked_again_for_every_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "-q", ".")
    asked, program = tmp_path / "asked", tmp_path / "bin/git"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho x >> '{asked}'\nexec {shutil.which('git')} \"$@\"\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    counts = []
    for number in (1, 20):
        asked.write_text("")
        experiment = run.Experiment("many")
        for _ in range(number):
            name = f"t{len(experiment._added)}"
            experiment.add(run.Script(inline="ls"), executor=run.LocalExecutor(packager=run.Packager()), name=name)
        experiment.plan()
        counts.append(len(asked.read_text().split()))
    assert counts[0] == counts[1] > 0
