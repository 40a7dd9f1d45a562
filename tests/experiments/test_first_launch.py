"""What a first launch to a cluster says: in which order, and what to do where something is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import on_cluster
import pytest

import launcher as run
from experiments.store import Store
from launcher.errors import LaunchError
from tests.experiments.test_cluster import cluster, launch, only
from tests.labs.machine import until
from tests.labs.slurm.lab import SlurmLab


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({"partition": "nowhere"}, "partition='...'"),
        ({"account": "proj-x"}, "account='...'"),
        ({"qos": "high"}, "qos='...'"),
        ({"nodes": 9}, "fewer nodes"),
        ({"mem": "900G"}, "fewer nodes, or less of each"),
        ({"gres": "gpus:2"}, "gres='...'"),
        ({"constraint": "h100"}, "constraint='...'"),
        ({"time": "3-0"}, "time='...' for less"),
    ],
)
def test_what_slurm_refuses_comes_with_advice(slurm_lab: SlurmLab, settings: dict[str, Any], advice: str) -> None:
    experiment = run.Experiment("refused")
    experiment.add(run.Partial(print), executor=cluster(slurm_lab, **settings))
    with pytest.raises(LaunchError) as error:
        experiment.run(progress=False)
    assert error.value.hint is not None and error.value.hint.startswith(advice)


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"python": "python9.9"}, "python9.9"), ({"launcher": "torchrun"}, "torch in /usr/bin/python3")],
)
def test_an_interpreter_that_is_not_there(slurm_lab: SlurmLab, settings: dict[str, Any], what: str) -> None:
    experiment = run.Experiment("no python")
    experiment.add(run.Partial(print), executor=cluster(slurm_lab, **settings))
    with pytest.raises(run.ExperimentFailed, match=rf"there is no {what} on node") as error:
        experiment.run(progress=False)
    assert "try: python='" in str(error.value)


def test_what_the_cluster_thinks_of_it_comes_after_the_experiments_own_line(
    slurm_lab: SlurmLab, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = run.Experiment("in order")
    experiment.add(run.Partial(print), executor=cluster(slurm_lab))
    experiment.run(progress=False)
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first == f"experiment {experiment.id}: {experiment.folder}"
    assert "could start it" in second


def test_a_cluster_out_of_reach_leaves_no_experiment_behind(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("Host nobody\n HostName 127.0.0.1\n Port 1\n")
    tunnel = run.SSHTunnel("nobody", ssh_config=str(config), job_dir="/home/alice/jobs")
    executor = run.SlurmExecutor(tunnel=tunnel, env_vars={"HF_TOKEN": "hf_secret"}, packager=run.Packager())
    with pytest.raises(LaunchError, match=r"nothing answers at 127\.0\.0\.1 port 1"):
        run.run(run.Partial(print), executor=executor)
    assert not list(Store().all())


def test_a_number_of_the_wrong_type_is_named_with_its_line() -> None:
    executor = run.SlurmExecutor(nodes="2")  # type: ignore[arg-type]
    with pytest.raises(LaunchError) as error:
        executor.check()
    assert error.value.where is not None and error.value.where.partition(":")[0].endswith(Path(__file__).name)


def test_a_script_that_does_not_travel_is_sent_to_nobody_with_advice_for_another_machine(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("print(1)\n")
    (tmp_path / "launch.py").write_text(
        "import launcher as run\n"
        "tunnel = run.SSHTunnel('nobody', job_dir='/home/alice/jobs')\n"
        "run.run(run.Script('program.py'), executor=run.SlurmExecutor(tunnel=tunnel), dryrun=True)\n"
    )
    done = subprocess.run([sys.executable, "launch.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "program.py, which is not in the package" in done.stderr
    assert "packager=run.PatternPackager(...)" in done.stderr


def test_a_ctrl_c_says_how_it_ended(slurm_lab: SlurmLab, launcher_home: Path) -> None:
    launcher = launch(slurm_lab, launcher_home, seconds=300)
    until(lambda: bool(list(Store().all())) and bool(only().task("first").events()), 60, "its submission")
    until(lambda: only().task("first").status.value == "running", 60, "its start")
    os.kill(launcher.pid, signal.SIGINT)
    said = launcher.communicate(timeout=60)[0]
    assert f"experiment {only().id}: cancelled\n" in said
    assert str(Path(on_cluster.__file__)) in said  # the traceback is Python's own


def test_nothing_secret_is_left_of_an_array(slurm_lab: SlurmLab) -> None:
    executor = cluster(slurm_lab, array="0-2", env_vars={"HF_TOKEN": "hf_secret"})
    with run.Experiment("array") as experiment:
        experiment.add(run.Script(inline='echo "$SLURM_ARRAY_TASK_ID ${#HF_TOKEN}"'), executor=executor, name="each")
        experiment.run(progress=False)
    there = Path(slurm_lab.job_dir, "experiments", experiment.id)
    assert sorted(path.read_text() for path in there.glob("each/array_*/rank_0.out")) == ["0 9\n", "1 9\n", "2 9\n"]
    assert not [path for name in ("secrets.json", "environment.sh") for path in there.rglob(name)]


def test_a_light_install_without_paramiko_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paramiko", None)
    with pytest.raises(LaunchError, match="paramiko") as error:
        run.SSHTunnel("nobody", job_dir="/jobs").run(["true"], timeout=5)
    assert error.value.hint == "pip install 'gemma-launcher[slurm]'"
