"""Which environment variables a training gets from us, and why: one table for every executor and for `direct`.

A rule gives a default: what the user has set, in an executor's `env_vars` or in the environment that its tasks inherit,
is never changed, also where it has the variable's former name. `executors.conflicts` says where what the user has set
cannot work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from executors.architecture import Architecture
from executors.conflicts import RENAMED
from executors.conflicts import lint as lint
from executors.situation import Situation
from launcher.errors import ConfigError

if TYPE_CHECKING:
    from executors.base import Executor


@dataclass(frozen=True)
class Rule:
    """One value of a variable. `when` it is set, also in words; `why`; and the `source` that says so."""

    variable: str
    value: str
    when: Callable[[Situation], bool]
    condition: str
    why: str
    source: str


@dataclass(frozen=True)
class Setting:
    """A variable that a run is given."""

    variable: str
    value: str
    why: str
    source: str


def _before_blackwell(s: Situation) -> bool:
    return s.architecture is not None and s.architecture < Architecture.BLACKWELL


def _one_queue(s: Situation) -> bool:
    return (s.tp > 1 or s.cp > 1) and not s.fsdp


_BRIDGE: Final = "Megatron-Bridge, recipes/utils/environment_utils.py"
_PERF: Final = "Megatron-Bridge 0.2, PerfEnvPlugin; NeMo, lightning/run/plugins.py"
_NCCL: Final = "NCCL manual, Environment Variables"
_DETERMINISTIC: Final = "Megatron-Core guide, Deterministic Training"
_MARGIN: Final = (
    "Transformer Engine's norms occupy every SM while they run, and would hold back the collectives beside them"
)

RULES: Final = (
    Rule(
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "1",
        lambda s: _before_blackwell(s) and _one_queue(s),
        "Hopper and older; TP or CP above 1; no FSDP",
        "kernels start in the order in which they were launched, so that a tensor- or context-parallel collective "
        "starts before the matrix product that is to hide it",
        f"{_PERF}; Megatron-Core, tensor_parallel/layers.py",
    ),
    Rule(
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "8",
        lambda s: _before_blackwell(s) and not _one_queue(s),
        "Hopper and older; TP and CP 1, or FSDP",
        "CUDA's own default, whatever an image says: with one queue, data-parallel collectives would wait behind the "
        "computation that is to hide them, and FSDP refuses to run",
        f"{_PERF}; Megatron-Core guide, Megatron-FSDP",
    ),
    Rule(
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "32",
        lambda s: s.architecture is not None and not _before_blackwell(s),
        "Blackwell and newer",
        "these order kernels by the priorities of their streams; with more queues, streams do not wait for each other "
        "in the same one",
        _PERF,
    ),
    Rule(
        "NVTE_FWD_LAYERNORM_SM_MARGIN",
        "16",
        lambda s: s.overlap and s.dp > 1,
        "DP above 1, and its communication is overlapped",
        _MARGIN,
        f"{_PERF}; Transformer Engine manual, Environment Variables",
    ),
    Rule(
        "NVTE_BWD_LAYERNORM_SM_MARGIN",
        "16",
        lambda s: s.overlap and s.dp > 1,
        "DP above 1, and its communication is overlapped",
        _MARGIN,
        f"{_PERF}; Transformer Engine manual, Environment Variables",
    ),
    Rule(
        "NCCL_P2P_NET_CHUNKSIZE",
        "2097152",
        lambda s: s.pp > 1 and s.nodes > 1,
        "PP above 1, on several nodes",
        "activations between stages travel in larger messages than NCCL's 128 KiB; NCCL takes as much of it as a slot "
        "of its buffer holds",
        f"{_PERF}; {_NCCL}; NVIDIA/nccl pull request 2410",
    ),
    Rule(
        "TORCH_NCCL_HIGH_PRIORITY",
        "1",
        lambda s: True,
        "always",
        "collectives run on streams of high priority, and are not queued behind the computation beside them",
        f"{_BRIDGE}; PyTorch manual, ProcessGroupNCCL Environment Variables",
    ),
    Rule(
        "NCCL_NVLS_ENABLE",
        "0",
        lambda s: not s.nvls,
        "no user buffers, and NCCL_ALGO asks for no NVLS",
        "without registered buffers NVLink SHARP costs GPU memory in every communicator and gains little; NCCL 2.29 "
        "and later fail where it cannot be had",
        f"{_BRIDGE}; {_NCCL}",
    ),
    Rule(
        "NCCL_NVLS_ENABLE",
        "1",
        lambda s: s.nvls and (s.architecture is None or s.architecture >= Architecture.HOPPER),
        "Hopper and newer, or not known; user buffers, or NCCL_ALGO asks for NVLS",
        "registered buffers are what NVLink SHARP reduces in without a copy",
        f"{_BRIDGE}; {_NCCL}",
    ),
    Rule(
        "NCCL_CTA_POLICY",
        "1",
        lambda s: s.user_buffers,
        "user buffers",
        "NCCL takes as few SMs as registered buffers need, and leaves the others to the computation beside it",
        f"{_BRIDGE}; {_NCCL}",
    ),
    Rule(
        "NCCL_GRAPH_REGISTER",
        "0",
        lambda s: not s.user_buffers,
        "no user buffers",
        "NCCL would register what CUDA graphs capture, and takes an expandable segment for one piece of memory: "
        "Megatron-Core refuses to run so before Blackwell",
        f"{_BRIDGE}; Megatron-Core, transformer/cuda_graphs.py; pytorch/pytorch issue 158029",
    ),
    Rule(
        "PYTORCH_ALLOC_CONF",
        "expandable_segments:True",
        lambda s: not s.user_buffers and not s.cuda_graphs and not s.container,
        "no user buffers, no CUDA graphs; not in a container",
        "torch's memory grows in place instead of falling into pieces, which leaves more for longer sequences",
        f"{_BRIDGE}; PyTorch manual, CUDA semantics; c10/core/AllocatorConfig.h for the name",
    ),
    Rule(
        "PYTORCH_CUDA_ALLOC_CONF",
        "expandable_segments:True",
        lambda s: not s.user_buffers and not s.cuda_graphs and s.container,
        "no user buffers, no CUDA graphs; in a container",
        "the same, by the name that every torch reads: nobody here knows which one the image holds",
        f"{_BRIDGE}; PyTorch manual, CUDA semantics",
    ),
    Rule(
        "NCCL_ALGO",
        "Ring",
        lambda s: s.deterministic,
        "deterministic",
        "the order of a ring is that of the machines: sums are the same to the bit from run to run",
        _DETERMINISTIC,
    ),
    Rule(
        "NVTE_ALLOW_NONDETERMINISTIC_ALGO",
        "0",
        lambda s: s.deterministic,
        "deterministic",
        "Transformer Engine takes deterministic kernels alone",
        _DETERMINISTIC,
    ),
    Rule(
        "CUBLAS_WORKSPACE_CONFIG",
        ":4096:8",
        lambda s: s.deterministic,
        "deterministic",
        "cuBLAS adds in one order only where the memory that it works in is fixed",
        f"{_DETERMINISTIC}; PyTorch manual, Reproducibility",
    ),
)
"""The table. At most one rule a variable holds in any situation."""


def variables(situation: Situation | None, given: Mapping[str, str]) -> list[Setting]:
    """What a run in this situation is given, where the user has set `given`. Nothing in None: no training on GPUs.

    Rules about an architecture are left out where it is not known; see `undecided`.
    """
    if situation is None:
        return []
    situation = situation.with_given(given)
    taken = {RENAMED.get(name, name) for name in given}
    return [
        Setting(rule.variable, rule.value, rule.why, rule.source)
        for rule in RULES
        if rule.when(situation) and RENAMED.get(rule.variable, rule.variable) not in taken
    ]


def undecided(situation: Situation | None, given: Mapping[str, str]) -> list[str]:
    """The variables that depend on an architecture that is not known."""
    if situation is None or situation.architecture is not None:
        return []
    known = {setting.variable for setting in variables(situation, given)}
    possible = [variables(replace(situation, architecture=one), given) for one in Architecture]
    return list(
        dict.fromkeys(each.variable for settings in possible for each in settings if each.variable not in known)
    )


def given_by(executor: Executor) -> dict[str, str]:
    """What the user has set for the tasks of an executor, in it or where they inherit it."""
    return {**executor.inherited(), **executor.env_vars}


def defaults(situation: Situation | None, executor: Executor) -> dict[str, str]:
    """The variables that a task on an executor gets from us."""
    return {setting.variable: setting.value for setting in variables(situation, given_by(executor))}


def refuse_conflicts(
    situation: Situation | None, given: Mapping[str, str], executor: Executor | None = None
) -> list[str]:
    """The warnings of `lint`. Raises ConfigError for its first error, with where the variable was set."""
    findings = lint(situation, given)
    for finding in findings:
        if finding.severity == "error":
            in_executor = executor is not None and finding.variable in executor.env_vars
            where = executor.where("env_vars") if in_executor and executor is not None else None
            inherited = "the environment" if finding.variable in given else None
            raise ConfigError(finding.text, where=where or inherited, hint=finding.hint)
    return [str(finding) for finding in findings]
