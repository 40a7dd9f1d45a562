"""What of the user's environment goes along to a cluster and into containers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import launcher as run
from executors.carried import CARRIED, carried
from executors.secrets import is_secret
from launcher.errors import ExecutorError

TOKENS = {"HF_TOKEN": "hf_mine", "WANDB_API_KEY": "mine"}
FOLDERS = {"HF_HOME": "/mine/hf", "NEMO_CACHE_DIR": "/mine/nemo", "SAVE_DIR": "/mine/runs"}
GUIDE = Path(__file__).parent.parent.parent / "docs" / "environment.md"


@pytest.fixture(autouse=True)
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TOKENS, **FOLDERS}.items():
        monkeypatch.setenv(name, value)


def ssh() -> run.SSHTunnel:
    return run.SSHTunnel("login.cluster.example", user="alice", job_dir="/home/alice/jobs")


def slurm(**settings: Any) -> run.SlurmExecutor:
    return run.SlurmExecutor(account="a", partition="p", time="00:10:00", **{"tunnel": ssh(), **settings})


@pytest.mark.parametrize(
    ("executor", "expected"),
    [
        (run.LocalExecutor(), {}),  # inherits them, and everything else
        (slurm(), TOKENS),  # whose folders are others
        (slurm(tunnel=run.LocalTunnel(job_dir="/home/alice/jobs")), {**TOKENS, **FOLDERS}),
        (slurm(tunnel=run.LocalTunnel(job_dir="/home/alice/jobs"), container_image="image"), TOKENS),
        (run.DockerExecutor(container_image="image"), TOKENS),
        (slurm(env_vars={"HF_TOKEN": "another"}), {"WANDB_API_KEY": "mine"}),
    ],
)
def test_tokens_go_anywhere_and_folders_where_they_are_the_same(executor: Any, expected: dict[str, str]) -> None:
    assert carried(executor) == expected


def test_what_is_not_set_does_not_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert carried(slurm()) == {}


def test_tokens_travel_as_secrets_and_a_script_has_its_own(
    launcher_home: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_SECRET_123")
    with run.Experiment("carried") as experiment:
        experiment.add(run.Partial(os.getcwd), executor=slurm(), name="task")
        experiment.add(run.Script(inline="true"), executor=slurm(), name="script")
        task, script = experiment.plan()
        experiment.dryrun()
    assert task.secrets == {"HF_TOKEN": "hf_SECRET_123", "WANDB_API_KEY": "mine"}
    assert not task.env.keys() & TOKENS.keys()
    assert script.secrets == {}
    shown = capsys.readouterr().out
    assert "HF_TOKEN=(secret)" in shown
    assert "hf_SECRET_123" not in shown


def test_checkpoints_of_a_recipe_without_a_dir_stay_where_the_places_save_dir_is() -> None:
    """Not where ours is: a container has its own folders."""
    from gemma_models import gemma3_1b

    recipe = gemma3_1b.pretrain_recipe()
    run.Experiment("kept").add(
        recipe,
        executor=run.DockerExecutor(container_image="image", volumes=["/data:/runs"], env_vars={"SAVE_DIR": "/runs/a"}),
    )
    with pytest.raises(ExecutorError, match=r"log\.dir is 'checkpoints', which goes with the containers"):
        run.Experiment("lost").add(
            recipe, executor=run.DockerExecutor(container_image="image", volumes=["/data:/runs"])
        )


def test_the_guides_table_is_that_of_the_code() -> None:
    """UPDATE_SNAPSHOTS=1 writes it anew."""
    rows = [["variable", "for", "goes along"], ["---"] * 3]
    rows += [
        [f"`{each.variable}`", each.what, "everywhere, as a secret" if each.anywhere else "where it is the same folder"]
        for each in CARRIED
    ]
    body = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    text = GUIDE.read_text()
    before, rest = text.split("<!-- carried -->\n")
    expected = f"{before}<!-- carried -->\n{body}<!-- end -->{rest.partition('<!-- end -->')[2]}"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        GUIDE.write_text(expected)
    assert text == expected
    assert all(is_secret(name) for name in TOKENS)
