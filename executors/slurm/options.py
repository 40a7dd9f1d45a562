"""What each option of sbatch may look like, and how it stands in an `#SBATCH` line.

A value is refused here where Slurm could only refuse it, or would read something else than was meant; whether the
cluster has such a partition, `sbatch --test-only` says.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Final

from launcher.errors import ExecutorError, nearest
from launcher.strict import Strict

NAME: Final = r"[\w.@+][\w.@+-]*"
NODES: Final = r"[\w.,/\[][\w.,/\[\]-]*"
MEMORY: Final = r"\d+[KMGTkmgt]?"
ELEMENTS: Final = r"\d+(-\d+(:\d+)?)?"
GRES: Final = r"(gres[:/])?[A-Za-z_][\w.-]*(:[A-Za-z_][\w.-]*)?([:=]\d+[KMGTkmgt]?)?(\(S:[\d,-]+\))?"

PATTERNS: Final = {
    "account": (NAME, "account='proj-a'"),
    "partition": (f"{NAME}(,{NAME})*", "partition='gpu', or 'gpu,long'"),
    "qos": (NAME, "qos='normal'"),
    "time": (
        r"UNLIMITED|INFINITE|\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}",
        "time='04:00:00', '1-12' (days-hours), or '90' (minutes)",
    ),
    "gres": (f"{GRES}(,{GRES})*", "gres='gpu:8', or 'gpu:h100:8'"),
    "mem": (MEMORY, "mem='200G', or '0' for all of a node"),
    "mem_per_gpu": (MEMORY, "mem_per_gpu='80G'"),
    "mem_per_cpu": (MEMORY, "mem_per_cpu='8G'"),
    "constraint": (r"[\w(\[][\w.:=,&|*()\[\]!+@-]*", "constraint='h100', or 'h100&nvme'"),
    "nodelist": (NODES, "nodelist='node[1-4,7]'"),
    "exclude": (NODES, "exclude='node[1-4,7]'"),
    "reservation": (f"{NAME}(,{NAME})*", "reservation='maintenance'"),
    "array": (f"{ELEMENTS}(,{ELEMENTS})*(%[1-9]\\d*)?", "array='0-7', '1,3,5', or '0-99%4' (four at a time)"),
    "signal": (r"([BR]{1,2}:)?\w+(@\d{1,5})?", "signal='USR1@120' (seconds before the end)"),
}
"""What a field must look like, and an example."""

SIGNALS: Final = {"HUP": 1, "INT": 2, "QUIT": 3, "USR1": 10, "USR2": 12, "URG": 23}
"""Those that may warn a job. TERM is what ends one, KILL cannot be caught."""
DEPENDENCIES: Final = ("afterok", "afterany", "after", "afternotok", "aftercorr")
EXCLUSIVE: Final = ("user", "mcs", "topo")
LAUNCHERS: Final = ("torchrun",)

OURS: Final = {
    "bell": None,
    "chdir": "job_dir of the tunnel",
    "cluster-constraint": "tunnel=... to a login node of that cluster",
    "clusters": "tunnel=... to a login node of that cluster",
    "dependency": "dependencies=[...] of Experiment.add",
    "error": None,
    "export": "env_vars",
    "export-file": "env_vars",
    "job-name": "the name of the task",
    "ntasks": "nodes and ntasks_per_node",
    "no-requeue": "retries",
    "open-mode": None,
    "output": None,
    "parsable": None,
    "requeue": "retries",
    "test-only": None,
    "wait": "detach=False",
    "wrap": "run.Script(inline=...)",
}
"""Options that this launcher sets itself, and what sets them."""

OTHERS: Final = frozenset(
    re.findall(
        r"[a-z-]+",
        """acctg-freq batch bb bbf begin comment consolidate-segments container container-id
    contiguous core-spec cores-per-socket cpu-freq cpus-per-gpu deadline delay-boot distribution extra extra-node-info
    get-user-env gid gpu-bind gpu-freq gpus gpus-per-socket gres-flags hint hold ignore-pbs input kill-on-invalid-dep
    licenses mail-type mail-user mcs-label mem-bind mincpus network nice no-kill nodefile ntasks-per-core ntasks-per-gpu
    ntasks-per-socket oom-kill-step overcommit oversubscribe power prefer priority profile propagate reboot
    resv-ports sockets-per-node spread-job spread-segments stepmgr switches thread-spec threads-per-core time-min tmp
    tres-bind tres-per-task uid use-min-nodes wait-all-nodes wckey""",
    )
)
"""What else sbatch has, of any version from 20.11 on: for additional_parameters."""

STEP: Final = {
    "container-env": "container_env",
    "container-image": "container_image",
    "container-mounts": "container_mounts",
    "container-workdir": "container_workdir",
    "error": None,
    "export": "env_vars",
    "job-name": None,
    "kill-on-bad-exit": None,
    "nodes": "nodes",
    "ntasks": "nodes and ntasks_per_node",
    "ntasks-per-node": "ntasks_per_node",
    "output": None,
}
"""Options of srun that this launcher sets itself."""

SHELL_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
READ_ONLY: Final = ("BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID")


def option(field: str) -> str:
    return field.replace("_", "-")


def refuse(at: Strict, field: str, what: str, hint: str | None) -> ExecutorError:
    """The error for a field of an executor."""
    return ExecutorError(f"{type(at).__name__}.{what}", where=at.where(field), hint=hint)


def check_text(at: Strict, field: str, value: object) -> None:
    """Refuse what is no such value. Raises ExecutorError."""
    pattern, example = PATTERNS[field]
    if not isinstance(value, str):
        raise refuse(at, field, f"{field} is {value!r} ({type(value).__name__}); it must be a str", example)
    if not re.fullmatch(pattern, value):
        raise refuse(at, field, f"{field} is {value!r}, which sbatch would not take", example)


def check_count(at: Strict, field: str, value: object, least: int = 1) -> None:
    if type(value) is not int or value < least:
        raise refuse(at, field, f"{field} is {value!r}; it must be an int of {least} or more, or None", None)


def check_choice(at: Strict, field: str, value: object, valid: Iterable[str]) -> None:
    if value not in (valid := tuple(valid)):
        hint = nearest(str(value), valid) or ", ".join(map(repr, valid))
        raise refuse(at, field, f"{field} is {value!r}, and can be {', '.join(valid)}", hint)


def check_texts(at: Strict, field: str, value: object, example: str) -> list[str]:
    """A list of texts that an argument list or a line can hold. Raises ExecutorError."""
    if not isinstance(value, list):
        raise refuse(at, field, f"{field} is {value!r}, and must be a list", example)
    for index, item in enumerate(value):
        check_argument(at, field, item, f"{field}[{index}]")
    return value


def check_argument(at: Strict, field: str, value: object, name: str = "") -> None:
    """Refuse what is no word on a line of the script. Raises ExecutorError."""
    name = name or field
    if not isinstance(value, str) or not value:
        raise refuse(at, field, f"{name} is {value!r}; it must be a str that is not empty", None)
    if not value.isprintable():
        raise refuse(at, field, f"{name} is {value!r}, and must be one line that can be read", None)


def check_parameters(at: Strict, values: object) -> None:
    """additional_parameters. A name that is like none of sbatch's is left to it: sites add options of their own."""
    field = "additional_parameters"
    if not isinstance(values, dict):
        raise refuse(at, field, f"{field} is {values!r}, and must be a dict", f"{field}={{'comment': 'a text'}}")
    fields = {option(known): known for known in [*PATTERNS, *FIELDS]}
    for name, value in values.items():
        shown = f"{field}[{name!r}]"
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise refuse(at, field, f"{field} has {name!r}, which is no option's name", "'comment', without dashes")
        plain = option(name)
        if plain in fields:
            raise refuse(at, field, f"{shown} is an attribute of its own", f"{fields[plain]}=...")
        if plain in OURS:
            raise refuse(at, field, f"{shown} is set by the launcher", OURS[plain])
        near = None if plain in OTHERS else nearest(plain, [*OTHERS, *fields, *OURS])
        if near:
            raise refuse(at, field, f"{shown} is no option of sbatch", near)
        if not isinstance(value, str | int):
            raise refuse(at, field, f"{shown} is {value!r}; it must be a str, an int or True", None)
        if isinstance(value, str) and not value.isprintable():
            raise refuse(at, field, f"{shown} is {value!r}: a line of the script cannot hold that", None)


FIELDS: Final = (
    "nodes",
    "ntasks_per_node",
    "cpus_per_task",
    "gpus_per_node",
    "gpus_per_task",
    "exclusive",
    "segment",
    "container_image",
    "container_mounts",
    "container_workdir",
    "container_env",
)


def check_step(at: Strict, values: object) -> None:
    """srun_args. Raises ExecutorError."""
    example = "srun_args=['--mpi=pmix', '--cpu-bind=none']"
    for index, item in enumerate(check_texts(at, "srun_args", values, example)):
        shown = f"srun_args[{index}] is {item!r}"
        if not re.match(r"--[a-z]|-[A-Za-z]", item):
            raise refuse(at, "srun_args", f"{shown}, which is no option; its value belongs to the same item", example)
        name = item[2:].partition("=")[0] if item.startswith("--") else SHORT.get(item[1], "")
        if name in STEP:
            raise refuse(at, "srun_args", f"{shown}, which the launcher sets itself", STEP[name])


SHORT: Final = {"N": "nodes", "n": "ntasks", "o": "output", "e": "error", "J": "job-name", "K": "kill-on-bad-exit"}


def check_names(at: Strict, field: str, names: Iterable[str]) -> None:
    """Refuse variables that the job's shell cannot set. Raises ExecutorError."""
    for name in names:
        if not SHELL_NAME.fullmatch(name) or name in READ_ONLY:
            said = "which is the shell's own" if name in READ_ONLY else "which a shell cannot set"
            raise refuse(at, field, f"{field} has the name {name!r}, {said}", "letters, digits and _")


def check_line(at: Strict, field: str, line: str, name: str) -> None:
    """Refuse a line of shell that would take the following ones with it. Raises ExecutorError."""
    try:
        shlex.split(line, comments=True)
    except ValueError as error:
        raise refuse(at, field, f"{name} is {line!r}: {str(error).lower()}", "one line an item") from None
    if not line.replace("\t", " ").isprintable():
        raise refuse(at, field, f"{name} is {line!r}, and must be one line", "one line an item")


def warning(given: str) -> tuple[str, str]:
    """The signal that warns, and sbatch's value for it: it goes to the batch script alone. Raises ValueError.

    A signal that reached torchrun would kill its agent, and leave the ranks behind.
    """
    flags, _, rest = given.rpartition(":")
    name, at, seconds = rest.partition("@")
    name = name.upper().removeprefix("SIG")
    name = next((known for known, number in SIGNALS.items() if str(number) == name), name)
    if name not in SIGNALS:
        raise ValueError(name)
    return name, f"{'R' if 'R' in flags else ''}B:{name}{at}{seconds}"


def gpus_of(gres: str) -> tuple[str | None, int | None]:
    """Model and number of the GPUs that a gres asks for, of each node; None where it names none."""
    for part in gres.split(","):
        words = re.split(r"[:=]", re.sub(r"\(.*|^gres[:/]", "", part))
        if words[0] == "gpu":
            count = int(words.pop()) if words[-1].isdigit() else 1
            return (words[1] if len(words) > 1 else None), count
    return None, None


def directives(values: Mapping[str, Any]) -> str:
    """`#SBATCH` lines. True is an option without a value; None and False are none."""
    lines = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        lines.append(f"#SBATCH --{option(name)}" if value is True else f"#SBATCH --{option(name)}={quoted(str(value))}")
    return "\n".join(lines)


def quoted(text: str) -> str:
    """As sbatch itself reads these lines; no shell does."""
    if re.fullmatch(r"[\w.@:=+,%/~^*&|()\[\]!-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
