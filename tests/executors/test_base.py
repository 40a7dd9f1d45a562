"""What every executor promises: misspelt attributes refused, clones apart, plans that are data and hold no secret."""

import json
from pathlib import Path
from typing import Any

import pytest

from executors.base import Plan, Status, Task
from executors.local import LocalExecutor
from launcher.errors import ExecutorError
from launcher.worker import Reader


def plan(executor: LocalExecutor, folder: Path = Path("/nowhere")) -> Any:
    return executor.plan(
        Task(name="t", experiment="e-1", folder=folder, launched_from=folder, launch_script=None, sys_path=(), call=1)
    )


@pytest.mark.parametrize(
    "misspell",
    [
        lambda: LocalExecutor(ntask_per_node=2),  # type: ignore[call-arg]
        lambda: LocalExecutor().clone(ntask_per_node=2),
        lambda: setattr(LocalExecutor(), "ntask_per_node", 2),
    ],
)
def test_a_misspelt_attribute_is_refused_naming_the_nearest(misspell: Any) -> None:
    with pytest.raises(ExecutorError, match="LocalExecutor has no attribute 'ntask_per_node'; it has ") as caught:
        misspell()
    assert "'ntasks_per_node'" in (caught.value.hint or "")


def test_executors_are_mutable_and_clones_share_nothing() -> None:
    one = LocalExecutor(env_vars={"A": "1"})
    one.ntasks_per_node = 4
    other = one.clone(launcher="torchrun")
    other.env_vars["B"] = "2"
    assert (one.launcher, one.env_vars) == (None, {"A": "1"})
    assert (other.ntasks_per_node, other.launcher, other.env_vars) == (4, "torchrun", {"A": "1", "B": "2"})


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ntasks_per_node": 0}, "ntasks_per_node is 0"),
        ({"ntasks_per_node": True}, "ntasks_per_node is True"),
        ({"ntasks_per_node": "2"}, "ntasks_per_node is '2'"),
        ({"nodes": 0}, "nodes is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"grace": "1"}, "grace is '1'"),
        ({"gpus_per_node": -1}, "gpus_per_node is -1"),
        ({"gpus_per_node": 99}, "wants 1 x 99 GPUs, and this machine shows"),
        ({"packager": "git"}, "packager is 'git'"),
        ({"env_vars": []}, "env_vars is of type list"),
        ({"launcher": "mpirun"}, "launcher is 'mpirun'"),
        ({"env_vars": {"A=B": "1"}}, "has the name 'A=B'"),
        ({"env_vars": {"": "1"}}, "has the name ''"),
        ({"env_vars": {"A": 1}}, r"env_vars\['A'\] is of type int"),
        ({"env_vars": {"A": "x\0y"}}, "without NUL"),
        (
            {"env_vars": {"A": "xy\ud800"}},
            r"env_vars\['A'\] holds what no environment can, 2 characters into its value",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ExecutorError, match=said):
        plan(LocalExecutor(**settings))


def test_an_error_about_a_secret_does_not_show_it() -> None:
    with pytest.raises(ExecutorError) as caught:
        plan(LocalExecutor(env_vars={"HF_TOKEN": "hf_abc\0"}))
    assert "hf_abc" not in str(caught.value)


def test_a_plan_is_pure_and_names_secrets_only(tmp_path: Path) -> None:
    made = plan(LocalExecutor(env_vars={"HF_TOKEN": "hf_abc", "QUOTED": "a'b\n$(c)"}), tmp_path)
    assert list(tmp_path.iterdir()) == []
    for text in (json.dumps(made.to_json()), made.to_text(), repr(made)):
        assert "hf_abc" not in text
    assert made.to_json()["secrets"] == ["HF_TOKEN"]
    assert "env     HF_TOKEN=(secret)" in made.to_text()
    assert "env     QUOTED='a'\"'\"'b\n$(c)'" in made.to_text()


def test_a_prepared_plan_is_read_back_from_its_json(tmp_path: Path) -> None:
    made = plan(LocalExecutor(nodes=2, ntasks_per_node=2, env_vars={"A": "1"}), tmp_path)
    back = Plan.from_json(json.loads(json.dumps(made.to_json())))
    assert back.to_json() == {**made.to_json(), "files": []}  # they lie in the folder by then
    with pytest.raises(ExecutorError, match="of version 99"):
        Plan.from_json({**made.to_json(), "version": 99})


def test_an_executor_is_read_back_without_what_the_plan_holds() -> None:
    executor = LocalExecutor(ntasks_per_node=2, retries=3, env_vars={"HF_TOKEN": "hf_abc"})
    encoded = json.dumps(executor.to_json())
    assert "hf_abc" not in encoded
    assert Reader().read(json.loads(encoded)) == executor.clone(env_vars={})


def test_which_states_are_final() -> None:
    assert {status for status in Status if not status.final} == {Status.QUEUED, Status.RUNNING}
