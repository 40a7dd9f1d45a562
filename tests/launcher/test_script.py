"""Scripts: what is refused, and the command that each becomes."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

import launcher as run
from launcher.errors import ConfigError
from launcher.script import Script


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-n $(x).py").write_text("print('hi')\n")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "has neither"),
        ({"path": "-n $(x).py", "inline": "x"}, "has both"),
        ({"path": "nowhere.py"}, "there is no file '.*/nowhere.py'"),
        ({"path": "."}, "there is no file"),
        ({"path": 3}, r"path is 3 \(int\)"),
        ({"path": "a b", "m": True}, "no module's name"),
        ({"path": "x", "m": "yes"}, "m is 'yes'"),
        ({"inline": "x", "args": "a b"}, "args is 'a b', and must be a list"),
        ({"inline": "x", "args": ["a", 1]}, r"args\[1\] is 1 \(int\)"),
        ({"inline": "x", "args": ["\0"]}, r"args\[0\] holds a NUL"),
        ({"inline": "x", "env": {"A=": "1"}}, "has the name 'A='"),
        ({"inline": "x", "env": {"HF_TOKEN": 12345}}, r"env\['HF_TOKEN'\] is of type int"),
        ({"inline": "x", "args": ["\ud800"]}, r"args\[0\] holds what no program can be given"),
        ({"inline": "x", "env": {"HF_TOKEN": "\ud800"}}, r"env\['HF_TOKEN'\] holds what no program can be given"),
        ({"inline": "x", "env": ["A=1"]}, "env is of type list"),
        ({"inline": "x", "entrypoint": "  "}, "entrypoint is '  ', which names no program"),
        ({"inline": "x", "entrypoint": "bash '"}, "entrypoint is .*No closing quotation"),
    ],
)
def test_what_cannot_run_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        run.Experiment("e").add(Script(**settings), executor=run.LocalExecutor())
    assert "12345" not in str(caught.value)


def test_a_misspelt_attribute_is_refused() -> None:
    script = Script(inline="x")
    with pytest.raises(ConfigError, match="Script has no attribute 'arg'") as caught:
        script.arg = ["x"]  # type: ignore[attr-defined]
    assert caught.value.hint == "'args'"


@pytest.mark.parametrize(
    ("script", "command"),
    [
        (Script("a.py"), ["/py", "FILE"]),
        (Script("a.sh", args=["-x", "$(y)"]), ["bash", "FILE", "-x", "$(y)"]),
        (Script("a.py", entrypoint="torchrun --nproc-per-node 2"), ["torchrun", "--nproc-per-node", "2", "FILE"]),
        (Script(inline="echo"), ["bash", "FILE"]),
        (Script(inline="print()", entrypoint="python"), ["/py", "FILE"]),
        (Script("pkg.tool", m=True, args=["1"]), ["/py", "-m", "pkg.tool", "1"]),
    ],
)
def test_commands(script: Script, command: list[str]) -> None:
    assert script.command("/py", "FILE") == command


def test_any_file_name_runs() -> None:
    result = run.run(Script("-n $(x).py"), progress=False)
    assert (result.folder / "rank_0.out").read_text() == "hi\n"
    assert result.task == "-n $(x)"


def test_direct_runs_here(capfd: pytest.CaptureFixture[str]) -> None:
    run.run(Script(inline="echo $MARK $0; pwd", env={"MARK": "m"}), direct=True)
    shown = capfd.readouterr().out
    assert shown.startswith("m /")
    assert shown.endswith(f"{Path.cwd()}\n")
    with pytest.raises(subprocess.CalledProcessError, match="exit status 3"):
        run.run(Script(inline="exit 3"), direct=True)
