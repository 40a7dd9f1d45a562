"""What the user has set that cannot work with a run, or that should not have been left on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from executors.architecture import Architecture
from executors.situation import Situation, names_nvls


@dataclass(frozen=True)
class Finding:
    """An "error" would stop the run or spoil its results; a "warning" costs speed or memory, or does nothing."""

    severity: Literal["error", "warning"]
    variable: str
    text: str
    hint: str | None = None

    def __str__(self) -> str:
        return self.text if self.hint is None else f"{self.text}\n  try: {self.hint}"


RENAMED: Final = {
    "PYTORCH_CUDA_ALLOC_CONF": "PYTORCH_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF": "PYTORCH_ALLOC_CONF",
    "NCCL_BLOCKING_WAIT": "TORCH_NCCL_BLOCKING_WAIT",
    "NCCL_ASYNC_ERROR_HANDLING": "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "NCCL_DESYNC_DEBUG": "TORCH_NCCL_DESYNC_DEBUG",
    "NCCL_ENABLE_TIMING": "TORCH_NCCL_ENABLE_TIMING",
    "NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK": "TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "TORCH_FR_BUFFER_SIZE",
    "TORCH_NCCL_TRACE_CPP_STACK": "TORCH_FR_CPP_STACK",
    "TORCH_NCCL_DEBUG_INFO_TEMP_FILE": "TORCH_FR_DUMP_TEMP_FILE",
    "NCCL_MAX_NRINGS": "NCCL_MAX_CTAS",
    "NCCL_MAX_NCHANNELS": "NCCL_MAX_CTAS",
    "NCCL_MIN_NRINGS": "NCCL_MIN_CTAS",
    "NCCL_MIN_NCHANNELS": "NCCL_MIN_CTAS",
    "NCCL_IB_GDR_LEVEL": "NCCL_NET_GDR_LEVEL",
}
"""Former names, which torch (headers of 2.13) and NCCL (manual of 2.30) still read, and the names of today."""

IGNORED: Final = {
    "TORCH_NCCL_AVOID_RECORD_STREAMS": "torch behaves so by itself now",
    "NCCL_AVOID_RECORD_STREAMS": "torch behaves so by itself now",
    "NCCL_CHECKS_DISABLE": "NCCL has checked nothing by itself since 2.2",
    "NCCL_IB_CUDA_SUPPORT": "NCCL_NET_GDR_LEVEL took its place in 2.4",
    "NCCL_SINGLE_RING_THRESHOLD": "NCCL has not read it since 2.3",
    "NCCL_LL_THRESHOLD": "NCCL has not read it since 2.5",
    "NCCL_TREE_THRESHOLD": "NCCL has not read it since 2.5",
}
"""What does nothing any more, and why."""

_OFF: Final = ("", "0", "false", "no", "off")

DEBUGGING: Final = (
    "NCCL_P2P_DISABLE",
    "NCCL_P2P_LEVEL",
    "NCCL_P2P_DIRECT_DISABLE",
    "NCCL_SHM_DISABLE",
    "NCCL_BUFFSIZE",
    "NCCL_NTHREADS",
    "NCCL_CHECK_POINTERS",
    "NCCL_CHECK_MODE",
    "NCCL_LAUNCH_MODE",
    "NCCL_IB_DISABLE",
    "NCCL_CUMEM_ENABLE",
    "NCCL_ALGO",
    "NCCL_PROTO",
    "NCCL_NVB_DISABLE",
    "NCCL_PXN_DISABLE",
    "NCCL_RUNTIME_CONNECT",
    "NCCL_LEGACY_CUDA_REGISTER",
    "NCCL_GRAPH_MIXING_SUPPORT",
    "NCCL_DMABUF_ENABLE",
    "NCCL_COMM_BLOCKING",
)
"""Of the section "Debugging" of NCCL's manual, what takes a transport, an algorithm or a default away from NCCL. Its
other entries tune a fabric, and administrators set them for good reasons."""

_SLOW: Final = {
    "CUDA_LAUNCH_BLOCKING": "every kernel is waited for, and nothing overlaps",
    "TORCH_DISTRIBUTED_DEBUG": "every collective is checked across ranks before it runs",
    "TORCH_NCCL_BLOCKING_WAIT": "the CPU waits for every collective",
}

_ATTENTION: Final = {
    "auto": {"NVTE_FLASH_ATTN": "1", "NVTE_FUSED_ATTN": "1", "NVTE_UNFUSED_ATTN": "1"},
    "flash": {"NVTE_FLASH_ATTN": "1", "NVTE_FUSED_ATTN": "0", "NVTE_UNFUSED_ATTN": "0"},
    "fused": {"NVTE_FLASH_ATTN": "0", "NVTE_FUSED_ATTN": "1", "NVTE_UNFUSED_ATTN": "0"},
    "unfused": {"NVTE_FLASH_ATTN": "0", "NVTE_FUSED_ATTN": "0", "NVTE_UNFUSED_ATTN": "1"},
    "local": {"NVTE_FLASH_ATTN": "0", "NVTE_FUSED_ATTN": "0", "NVTE_UNFUSED_ATTN": "0"},
}
"""What Megatron-Core sets for each attention backend; it stops where it finds another value."""


def lint(situation: Situation | None, given: Mapping[str, str]) -> list[Finding]:
    """What is wrong with what the user has `given`, errors first. Nothing where the run is no training on GPUs."""
    if situation is None:
        return []
    situation = situation.with_given(given)
    checks = (_connections, _user_buffers, _nvls, _attention, _allocator, _determinism, _renamed, _debugging)
    found = [finding for check in checks for finding in check(situation, given)]
    return sorted(found, key=lambda finding: finding.severity)


def _connections(s: Situation, given: Mapping[str, str]) -> Iterator[Finding]:
    name = "CUDA_DEVICE_MAX_CONNECTIONS"
    if (value := given.get(name)) is None:
        return
    if not value.isdecimal() or not 1 <= int(value) <= 32:
        yield Finding("error", name, f"{name} is {value!r}; CUDA takes a number from 1 to 32", f"{name}=8")
    elif s.fsdp:
        if int(value) == 1:
            yield Finding(
                "error",
                name,
                f"{name} is 1, and FSDP cannot run so: its collectives would wait behind the computation that is to "
                "hide them",
                f"leave it out, or {name}=8",
            )
    elif s.architecture is None:
        return
    elif s.architecture >= Architecture.BLACKWELL:
        if int(value) == 1:
            yield Finding(
                "warning",
                name,
                f"{name} is 1, which Blackwell does not need; streams wait for each other in one queue",
                f"leave it out, or {name}=32",
            )
    elif (s.tp > 1 or s.cp > 1) and int(value) != 1:
        yield Finding(
            "warning",
            name,
            f"{name} is {value}; with tensor or context parallelism on {s.architecture.name.capitalize()}, collectives "
            "may start after the matrix products that are to hide them",
            f"leave it out, or {name}=1",
        )
    elif s.tp == s.cp == 1 and int(value) == 1 and s.dp > 1:
        yield Finding(
            "warning",
            name,
            f"{name} is 1, and only tensor and context parallelism gain by it; data-parallel collectives wait behind "
            "computation",
            f"leave it out, or {name}=8",
        )


def _expandable(given: Mapping[str, str]) -> str | None:
    """The name of the variable that turns expandable segments on: torch takes the former name where both are set."""
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        if name in given:
            return name if "expandable_segments:true" in given[name].lower().replace(" ", "") else None
    return None


def _user_buffers(s: Situation, given: Mapping[str, str]) -> Iterator[Finding]:
    if not s.user_buffers:
        return
    if name := _expandable(given):
        yield Finding(
            "error",
            name,
            f"{name} turns expandable segments on, and NCCL cannot register buffers in them",
            f"{name} without expandable_segments, or no user buffers",
        )
    if given.get("NCCL_LOCAL_REGISTER") == "0":
        yield Finding(
            "warning",
            "NCCL_LOCAL_REGISTER",
            "NCCL_LOCAL_REGISTER is 0: no buffer is registered, and user buffers gain nothing",
            "leave it out",
        )


def _nvls(s: Situation, given: Mapping[str, str]) -> Iterator[Finding]:
    name = "NCCL_NVLS_ENABLE"
    value = given.get(name)
    if value == "0" and names_nvls(given.get("NCCL_ALGO", "")):
        yield Finding(
            "error",
            name,
            f"{name} is 0, and NCCL_ALGO asks for NVLS: NCCL fails where no algorithm is left",
            f"leave {name} out, or another NCCL_ALGO",
        )
    elif value == "0" and s.user_buffers:
        yield Finding(
            "warning",
            name,
            f"{name} is 0, and Megatron-Core sets it to 1 for user buffers",
            "leave it out, or no user buffers",
        )
    elif value in ("1", "2") and s.architecture is not None and s.architecture < Architecture.HOPPER:
        yield Finding("warning", name, f"{name} is {value}; NVLink SHARP comes with Hopper", "leave it out")
    elif value in ("1", "2") and not s.nvls:
        yield Finding(
            "warning",
            name,
            f"{name} is {value}; without user buffers, NVLink SHARP takes GPU memory in every communicator and gains "
            "little",
            "leave it out",
        )


def _attention(s: Situation, given: Mapping[str, str]) -> Iterator[Finding]:
    cudnn = "NVTE_FUSED_ATTN"
    if s.softcap and s.attention_backend == "fused":
        yield Finding(
            "error",
            cudnn,
            "attention_backend is fused, which is cuDNN's attention: it cannot cap the scores as this Gemma does",
            "attention_backend=auto",
        )
    for name, expected in _ATTENTION.get(s.attention_backend, {}).items():
        if name in given and given[name] != expected:
            yield Finding(
                "error",
                name,
                f"{name} is {given[name]!r}; Megatron-Core sets it to {expected} for the attention backend "
                f"{s.attention_backend!r}, and stops at any other value",
                "leave it out",
            )
    if s.softcap and s.attention_backend != "fused" and given.get(cudnn) == "1":
        yield Finding(
            "warning",
            cudnn,
            f"{cudnn} is 1, and does nothing here: cuDNN's attention cannot cap the scores as this Gemma does",
            "leave it out",
        )


def _allocator(s: Situation, given: Mapping[str, str]) -> Iterator[Finding]:
    old, new = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
    if old in given and new in given and given[old] != given[new]:
        yield Finding(
            "warning",
            new,
            f"{new} and {old}, its former name, say different things, and torch takes the latter",
            f"{new} alone",
        )
    name = _expandable(given)
    if name and s.cuda_graphs and given.get("NCCL_GRAPH_REGISTER", "0") != "0":
        yield Finding(
            "error",
            "NCCL_GRAPH_REGISTER",
            f"NCCL_GRAPH_REGISTER is {given['NCCL_GRAPH_REGISTER']}, and {name} turns expandable segments on: CUDA "
            "graphs then read and write where nothing is",
            "leave NCCL_GRAPH_REGISTER out",
        )
    if "NCCL_CHUNK_SIZE" in given:
        yield Finding(
            "error",
            "NCCL_CHUNK_SIZE",
            "NCCL_CHUNK_SIZE is no setting that NCCL documents, and can make what is sent arrive wrong",
            "leave it out",
        )


def _determinism(s: Situation, given: Mapping[str, str]) -> Iterator[Finding]:
    """Megatron-Core refuses other values than these in its deterministic mode."""
    if not s.deterministic:
        return
    fixed = {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": ("0",), "CUBLAS_WORKSPACE_CONFIG": (":4096:8", ":16:8")}
    for name, valid in fixed.items():
        if name in given and given[name] not in valid:
            text = f"{name} is {given[name]!r}, and the run is to be deterministic"
            yield Finding("error", name, text, f"{name}={valid[0]}")
    algorithms = given.get("NCCL_ALGO", "Ring").lower()
    if not set(algorithms.split(",")) <= {"ring", "collnetdirect", "collnetchain", "^nvls"}:
        text = f"NCCL_ALGO is {given['NCCL_ALGO']!r}, and the run is to be deterministic"
        yield Finding("error", "NCCL_ALGO", text, "NCCL_ALGO=Ring")


def _renamed(s: Situation, given: Mapping[str, str]) -> Iterator[Finding]:
    for name in given:
        if name in IGNORED:
            yield Finding("warning", name, f"{name} does nothing: {IGNORED[name]}", "leave it out")
        elif name in RENAMED and not (s.container and name == "PYTORCH_CUDA_ALLOC_CONF"):
            now = RENAMED[name]
            yield Finding("warning", name, f"{name} is called {now} now", f"{now}={given[name]}")


def _debugging(s: Situation, given: Mapping[str, str]) -> Iterator[Finding]:
    if given.get("NCCL_DEBUG", "").upper() in ("INFO", "TRACE"):
        yield Finding(
            "warning",
            "NCCL_DEBUG",
            f"NCCL_DEBUG is {given['NCCL_DEBUG']}: every rank writes pages at its start",
            "NCCL_DEBUG=WARN",
        )
    for name, effect in _SLOW.items():
        value = given.get(name, "").lower()
        if value not in (*_OFF, "info"):
            yield Finding("warning", name, f"{name} is {given[name]}: {effect}", "leave it out")
    for name in DEBUGGING:
        wanted = name == "NCCL_ALGO" and s.deterministic
        harmless = name.endswith(("DISABLE", "CHECK_POINTERS", "REGISTER")) and given.get(name, "").lower() in _OFF
        if name in given and not wanted and not harmless:
            yield Finding(
                "warning",
                name,
                f"{name} is {given[name]}; NCCL's manual has it for debugging alone, to be taken away afterwards",
                "leave it out",
            )
