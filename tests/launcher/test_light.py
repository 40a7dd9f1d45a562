"""What importing the front door costs: nothing heavy, and no fiddle until a Config is made."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "megatron", "transformers", "paramiko", "docker", "rich", "numpy")


def modules_after(code: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in json.loads(shown.stdout)}


def test_import_brings_nothing() -> None:
    loaded = modules_after("import launcher as run; run.run")
    assert "launcher" in loaded
    assert not loaded & {*HEAVY, "fiddle", "click", "yaml", "watchfiles", "subprocess", "dataclasses", "executors"}


@pytest.mark.parametrize("name", ["LocalExecutor", "Experiment", "Result", "LaunchError", "ExperimentFailed"])
def test_names_need_no_fiddle(name: str) -> None:
    assert not modules_after(f"import launcher as run; run.{name}") & {*HEAVY, "fiddle", "yaml", "watchfiles"}


def test_config_brings_fiddle_and_nothing_heavy() -> None:
    loaded = modules_after("import launcher as run; run.Config(dict)")
    assert "fiddle" in loaded
    assert not loaded & {*HEAVY, "yaml"}


@pytest.mark.parametrize("arguments", [["-h"], ["finetune", "-h"], ["experiment", "list"], ["completion", "fish"]])
def test_help_and_lists_need_no_fiddle(arguments: list[str]) -> None:
    command = "import os, sys; from launcher.cli import cli; sys.stdout = open(os.devnull, 'w')\n"
    command += f"cli.main({arguments!r}, standalone_mode=False); sys.stdout = sys.__stdout__"
    assert not modules_after(command) & {*HEAVY, "fiddle", "yaml", "watchfiles"}


def test_every_public_name_resolves() -> None:
    import launcher

    for name in dir(launcher):
        assert getattr(launcher, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'Confg'; it has Config"):
        launcher.Confg  # noqa: B018


def test_run_is_the_function_whatever_was_imported_first() -> None:
    code = "import launcher.run, launcher as run; import launcher.run; assert callable(run.run), run.run"
    subprocess.run([sys.executable, "-c", code], check=True)
