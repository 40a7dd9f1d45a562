"""What a SlurmExecutor may be asked for: whatever a person types is data, or is refused by its name."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from submitted import make_plan

from executors.architecture import Architecture
from executors.slurm import options
from executors.slurm.executor import SlurmExecutor
from executors.tunnel import LocalTunnel, SSHTunnel
from launcher.config import Partial
from launcher.errors import LaunchError

HOSTILE = (
    "a b",
    "'",
    '"',
    "a\nb",
    "\n#SBATCH --wrap=x",
    ";touch /tmp/x",
    "$(touch /tmp/x)",
    "`touch /tmp/x`",
    "-x",
    "--wrap=x",
    "é ü",
    "a#b",
    "#",
    "a\\",
    "a,b:c",
    "%j",
    "",
    "\0",
    "\x1b[31m",
    "\u2028",
    "\udc80",
)
TEXTS = [
    *options.PATTERNS,
    "dependency_type",
    "container_workdir",
    "container_image",
    "launcher",
    "python",
    "exclusive",
]
LISTS = ["container_mounts", "container_env", "srun_args", "setup_lines"]
AS_DATA = {"container_image", "container_workdir", "container_mounts", "python", "additional_parameters", "env_vars"}


def executor(**settings: Any) -> SlurmExecutor:
    return SlurmExecutor(tunnel=SSHTunnel("lab", job_dir="/home/alice/jobs"), **settings)


def settings_of(field: str, value: str) -> dict[str, Any]:
    image = {"container_image": "/image"} if field.startswith("container") else {}
    if field in LISTS:
        return {**image, field: [value]}
    if field == "additional_parameters":
        return {field: {"comment": value}}
    if field == "env_vars":
        return {field: {"A": value}}
    return {**image, field: value}


@pytest.mark.parametrize("value", HOSTILE, ids=ascii)
@pytest.mark.parametrize("field", [*TEXTS, *LISTS, "additional_parameters", "env_vars"])
def test_hostile_text_is_data_or_refused(field: str, value: str, tmp_path: Path) -> None:
    try:
        plan = make_plan(executor(**settings_of(field, value)), tmp_path / "task", Partial(dict))
    except LaunchError as error:
        assert field in str(error)
        return
    text = plan.files["job.sh"]
    (tmp_path / "job.sh").write_text(text, encoding="utf-8", errors="surrogateescape")
    if field != "setup_lines":  # which are shell
        assert subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=False).returncode == 0
    asked = {line.partition("=")[0]: line for line in text.split("\n") if line.startswith("#SBATCH")}
    plain = {
        line.partition("=")[0]
        for line in make_plan(executor(), tmp_path / "plain", Partial(dict)).files["job.sh"].split("\n")
    }
    more = {name.removeprefix("#SBATCH --") for name in asked if name not in plain}
    if field == "env_vars":
        assert plan.env["A"] == value
        assert value == sourced(plan.files["environment.sh"], tmp_path)
    elif field == "additional_parameters":
        assert more == {"comment"}
        assert read_by_sbatch(asked["#SBATCH --comment"].partition("=")[2]) == value
    elif field in options.PATTERNS:
        assert more == {options.option(field)}
        assert asked[f"#SBATCH --{options.option(field)}"].endswith(f"={value}")
    elif field == "setup_lines":
        assert not more
    else:
        assert not more
        assert value in " ".join(command(text))


def sourced(text: str, folder: Path) -> str:
    (folder / "environment.sh").write_text(text, encoding="utf-8", errors="surrogateescape")
    show = '. ./environment.sh; printf "%s." "$A"'
    done = subprocess.run(["bash", "-c", show], cwd=folder, capture_output=True, check=True)
    return done.stdout.decode(errors="surrogateescape")[:-1]


def read_by_sbatch(text: str) -> str:
    """As its own parser does: a word, or one in double quotes with backslashes before quotes and backslashes."""
    if text[:1] != '"':
        assert not set(text) & set(" #'\"\\")
        return text
    assert text[-1] == '"'
    return re.sub(r"\\(.)", r"\1", text[1:-1])


def command(text: str) -> list[str]:
    return shlex.split(text.partition("exec srun ")[2].partition("\n}")[0])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"time": "4h"}, "time is '4h', which sbatch would not take"),
        ({"time": 240}, "time is 240 (int); it must be a str"),
        ({"mem": "200 GB"}, "mem is '200 GB'"),
        ({"mem": "1G", "mem_per_cpu": "1G"}, "mem_per_cpu and mem exclude each other"),
        ({"mem_per_gpu": "80G"}, "no GPU is asked for"),
        ({"gres": "gpu:8", "gpus_per_node": 4}, "gres asks for 8 GPUs a node, and gpus_per_node for 4"),
        ({"gpus_per_task": 1, "ntasks_per_node": 4, "gpus_per_node": 8}, "gpus_per_task asks for 4 GPUs a node"),
        ({"nodes": 3, "segment": 2}, "which 3 nodes are no multiple of"),
        ({"array": "0-"}, "array is '0-'"),
        ({"signal": "TERM@60"}, "one that warns is HUP, INT, QUIT, USR1, USR2, URG"),
        ({"signal": "USR@60"}, "try: 'USR2' or 'USR1'"),
        ({"dependency_type": "afterOk"}, "try: 'afterok'"),
        ({"launcher": "torch-run"}, "try: 'torchrun'"),
        ({"exclusive": "users"}, "try: 'user'"),
        ({"cpus_per_task": 0}, "cpus_per_task is 0; it must be an int of 1 or more"),
        (
            {"additional_parameters": {"commment": "x"}},
            "additional_parameters['commment'] is no option of sbatch\n  try: 'comment'",
        ),
        ({"additional_parameters": {"partition": "x"}}, "is an attribute of its own\n  try: partition=..."),
        ({"additional_parameters": {"output": "x"}}, "is set by the launcher"),
        ({"additional_parameters": {"mail-user": 1.5}}, "must be a str, an int or True"),
        ({"srun_args": ["--ntasks=3"]}, "which the launcher sets itself\n  try: nodes and ntasks_per_node"),
        ({"additional_parameters": {"clusters": "b"}}, "is set by the launcher\n"),
        ({"srun_args": ["-n3"]}, "which the launcher sets itself"),
        ({"srun_args": "--mpi=pmix"}, "and must be a list"),
        ({"srun_args": ["none"]}, "which is no option"),
        ({"setup_lines": ["echo 'a"]}, 'setup_lines[0] is "echo \'a": no closing quotation'),
        ({"container_mounts": ["/a:/b"]}, "container_mounts is set, and container_image is not"),
        ({"container_image": "/i", "container_mounts": ["a:/b"]}, "it is two absolute paths"),
        ({"env_vars": {"a.b": "x"}}, "env_vars has the name 'a.b', which a shell cannot set"),
        ({"env_vars": {"UID": "1"}}, "which is the shell's own"),
        ({"tunnel": None}, "there is no way to the cluster\n"),
        ({"tunnel": "alice@lab"}, "tunnel is 'alice@lab'"),
        ({"partitoin": "gpu"}, "try: 'partition'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(LaunchError) as raised:
        SlurmExecutor(**{"tunnel": LocalTunnel(job_dir="/jobs"), **settings}).check()
    lines = [line for line in str(raised.value).split("\n") if "set at:" not in line]
    assert said in "\n".join(lines)
    assert raised.value.where is not None
    assert Path(raised.value.where.rpartition(":")[0]).name == Path(__file__).name


@pytest.mark.parametrize(
    "settings",
    [
        {"time": "1-12"},
        {"time": "90"},
        {"gres": "gpu:h100:8,nvme:1", "gpus_per_node": 8, "ntasks_per_node": 16},
        {"gres": "gpu", "gpus_per_node": 1},
        {"constraint": "[rack1*2&rack2*4]|h100"},
        {"array": "0-15:4,20%2"},
        {"signal": "B:SIGUSR2@60"},
        {"signal": "10@60"},
        {"additional_parameters": {"mail_type": "END,FAIL", "hold": True, "nice": 100, "site-budget": "x y"}},
        {"mem_per_gpu": "80G", "additional_parameters": {"gpus": 8}},
        {"nodelist": "node[1-4,7]", "exclude": "node[2-3]", "exclusive": "user"},
    ],
    ids=str,
)
def test_what_can_be_is_taken(settings: dict[str, Any]) -> None:
    executor(**settings).check()


def test_a_warning_goes_to_the_batch_script_alone() -> None:
    assert options.warning("SIGUSR2@60") == ("USR2", "B:USR2@60")
    assert options.warning("B:10@60") == ("USR1", "B:USR1@60")
    assert options.warning("R:HUP") == ("HUP", "RB:HUP")


def test_architecture() -> None:
    assert executor(gpu="b200").architecture() is Architecture.BLACKWELL
    assert executor(gres="gpu:h100:8").architecture() is Architecture.HOPPER
    assert executor(gres="gpu:nvidia_a100_80gb:8").architecture() is Architecture.AMPERE
    assert executor(gres="gpu:8").architecture() is None


def test_a_place_is_a_tunnel() -> None:
    assert executor().place == executor(nodes=2).place
    assert executor().follows(executor(nodes=2))
    assert not executor().follows(SlurmExecutor(tunnel=LocalTunnel(job_dir="/home/alice/jobs")))


def test_a_folder_that_slurm_would_misread_is_refused() -> None:
    for folder in ("/home/100%/jobs", "/home/a\\b", "/home/a\nb"):
        with pytest.raises(LaunchError, match="job_dir"):
            SlurmExecutor(tunnel=LocalTunnel(job_dir=folder)).check()
