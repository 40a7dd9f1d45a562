"""What the fields of DockerExecutor may be, and what the engine is asked for with them.

A value is refused here where the engine could only refuse it, or would take it for something else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from launcher.errors import ExecutorError, nearest
from launcher.strict import Strict

SIZE: Final = r"[1-9]\d*[bkmgBKMG]?"
PATTERNS: Final = {
    "container_image": (r"[\w.@:/-]+", "container_image='nvcr.io/nvidia/pytorch:25.09-py3'"),
    "memory": (SIZE, "memory='64g'"),
    "shm_size": (SIZE, "shm_size='16g'"),
    "ipc_mode": (r"host|private|shareable|none|container:[\w.-]+", "ipc_mode='host'"),
    "network": (r"[\w][\w.-]*", "network='host', or the name of one that is there"),
    "user": (r"[\w][\w.-]*(:[\w][\w.-]*)?", "user='1000:1000'"),
    "python": (r"[^\s]+", "python='/usr/bin/python3'"),
    "host": (r"(unix|npipe|tcp|http|https|ssh)://\S+", "host='ssh://me@gpu-server', or 'unix:///var/run/docker.sock'"),
}
"""What a field must look like, and an example."""
LIMITS: Final = (
    *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss"),
    *("rtprio", "rttime", "sigpending", "stack"),
)
ULIMIT: Final = re.compile(r"([a-z]+)=(-1|\d+)(?::(-1|\d+))?")
VOLUME: Final = re.compile(r"([^:]+):(/[^:]*)(?::(ro|rw))?")
REQUEST: Final = ("driver", "count", "device_ids", "capabilities", "options")

OURS: Final = {
    "auto_remove": None,
    "command": None,
    "detach": None,
    "entrypoint": None,
    "environment": "env_vars",
    "hostname": None,
    "image": "container_image",
    "labels": None,
    "mem_limit": "memory",
    "mounts": "volumes",
    "name": None,
    "nano_cpus": "cpus",
    "network_disabled": "network='none'",
    "network_mode": "network",
    "networking_config": None,
    "ports": None,
    "restart_policy": "retries",
    "stdin_open": None,
    "stdout": None,
    "stderr": None,
    "remove": None,
    "tty": None,
    "version": None,
    "working_dir": None,
}
"""Arguments that this launcher gives itself, and what sets them."""
FIELDS: Final = (
    "cpus",
    "device_requests",
    "ipc_mode",
    "memory",
    "network",
    "privileged",
    "shm_size",
    "ulimits",
    "user",
    "volumes",
)
OTHERS: Final = frozenset(
    re.findall(
        r"[a-z_]+",
        """blkio_weight blkio_weight_device cap_add cap_drop cgroup_parent cgroupns cpu_count cpu_percent
        cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares cpuset_cpus cpuset_mems device_cgroup_rules
        device_read_bps device_read_iops device_write_bps device_write_iops devices dns dns_opt dns_search
        domainname extra_hosts group_add healthcheck init init_path isolation kernel_memory links log_config
        lxc_conf mac_address mem_reservation mem_swappiness memswap_limit oom_kill_disable oom_score_adj
        pid_mode pids_limit platform publish_all_ports read_only runtime security_opt stop_signal storage_opt
        sysctls tmpfs use_config_proxy userns_mode uts_mode volume_driver volumes_from""",
    )
)
"""What else `docker.containers.create` takes: for additional_kwargs."""


def refuse(at: Strict, field: str, what: str, hint: str | None) -> ExecutorError:
    """The error for a field of an executor."""
    return ExecutorError(f"{type(at).__name__}.{what}", where=at.where(field), hint=hint)


def check_text(at: Strict, field: str, value: object) -> None:
    """Refuse what is no such value. Raises ExecutorError."""
    pattern, example = PATTERNS[field]
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        raise refuse(at, field, f"{field} is {value!r}, which no engine would take", example)


def check_count(at: Strict, field: str, value: object) -> None:
    if type(value) is not int or value < 0:
        raise refuse(at, field, f"{field} is {value!r}; it must be an int of 0 or more, or None", None)


def check_texts(at: Strict, field: str, value: object, pattern: re.Pattern[str], example: str) -> None:
    if not isinstance(value, list):
        raise refuse(at, field, f"{field} is {value!r}, and must be a list", example)
    for index, item in enumerate(value):
        if not isinstance(item, str) or not pattern.fullmatch(item) or "\n" in item:
            raise refuse(at, field, f"{field}[{index}] is {item!r}, which no engine would take", example)


def check_ulimits(at: Strict, value: object) -> None:
    check_texts(at, "ulimits", value, ULIMIT, "ulimits=['memlock=-1', 'stack=67108864']")
    for name, _, _ in map(parts, value if isinstance(value, list) else []):
        if name not in LIMITS:
            raise refuse(
                at, "ulimits", f"ulimits has {name!r}, and can have {', '.join(LIMITS)}", nearest(name, LIMITS)
            )


def check_volumes(at: Strict, value: object) -> None:
    check_texts(at, "volumes", value, VOLUME, "volumes=['/data:/data:ro', 'checkpoints:/checkpoints']")
    taken: set[str] = set()
    for index, item in enumerate(value if isinstance(value, list) else []):
        source, target, _ = mount(item)
        if not source.startswith("/") and not re.fullmatch(r"[a-zA-Z0-9][\w.-]+", source):
            what = f"volumes[{index}] is {item!r}: {source!r} is no absolute path, and no volume's name"
            raise refuse(at, "volumes", what, "'/on/the/engine:/in/the/container', or 'volume:/in/the/container'")
        if target in taken:
            raise refuse(at, "volumes", f"volumes[{index}] is {item!r}, and {target} is taken", None)
        taken.add(target)


def check_requests(at: Strict, value: object) -> None:
    example = "device_requests=[{'device_ids': ['0'], 'capabilities': [['gpu']]}]"
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise refuse(at, "device_requests", f"device_requests is {value!r}, and must be a list of dicts", example)
    for item in value:
        for name in item:
            if name not in REQUEST:
                what = f"device_requests has {name!r}, and can have {', '.join(REQUEST)}"
                raise refuse(at, "device_requests", what, nearest(str(name), REQUEST) or example)


def check_more(at: Strict, values: object) -> None:
    """additional_kwargs. Raises ExecutorError."""
    field = "additional_kwargs"
    if not isinstance(values, dict):
        raise refuse(at, field, f"{field} is {values!r}, and must be a dict", f"{field}={{'cap_add': ['SYS_PTRACE']}}")
    for name, value in values.items():
        if name in FIELDS:
            raise refuse(at, field, f"{field}[{name!r}] is an attribute of its own", f"{name}=...")
        if name in OURS:
            raise refuse(at, field, f"{field}[{name!r}] is set by the launcher", OURS[name])
        if name not in OTHERS:
            near = nearest(str(name), [*OTHERS, *FIELDS, *OURS])
            raise refuse(at, field, f"{field} has {name!r}, which docker.containers.create does not take", near)
        try:
            json.dumps(value)
        except TypeError as error:
            raise refuse(
                at, field, f"{field}[{name!r}] is {value!r}: {error}", "a str, a number, a list, a dict"
            ) from None


def parts(ulimit: str) -> tuple[str, int, int]:
    """Name, soft and hard limit."""
    found = ULIMIT.fullmatch(ulimit)
    if found is None:
        raise ValueError(ulimit)
    return found[1], int(found[2]), int(found[3] or found[2])


def mount(volume: str) -> tuple[str, str, bool]:
    """From, to, and whether nothing may be written there."""
    found = VOLUME.fullmatch(volume)
    if found is None:
        raise ValueError(volume)
    return found[1], found[2], found[3] == "ro"


def without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
