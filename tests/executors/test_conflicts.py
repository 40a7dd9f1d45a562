"""What the linter finds, one conflict at a time, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import pytest

from executors.architecture import Architecture
from executors.conflicts import DEBUGGING, IGNORED, RENAMED, lint
from executors.situation import Situation

HOPPER, BLACKWELL = {"architecture": Architecture.HOPPER}, {"architecture": Architecture.BLACKWELL}
QUEUES = "CUDA_DEVICE_MAX_CONNECTIONS"
EXPANDABLE = "expandable_segments:True"


@pytest.mark.parametrize(
    ("situation", "given", "severity", "said"),
    [
        ({}, {QUEUES: "many"}, "error", "a number from 1 to 32"),
        ({}, {QUEUES: "64"}, "error", "a number from 1 to 32"),
        ({**HOPPER, "fsdp": True, "tp": 2}, {QUEUES: "1"}, "error", "FSDP cannot run so"),
        ({**BLACKWELL, "fsdp": True}, {QUEUES: "1"}, "error", "FSDP cannot run so"),
        ({**HOPPER, "tp": 2}, {QUEUES: "8"}, "warning", "on Hopper, collectives may start after"),
        ({**HOPPER, "cp": 2}, {QUEUES: "32"}, "warning", "on Hopper, collectives may start after"),
        ({**HOPPER, "devices": 8}, {QUEUES: "1"}, "warning", "only tensor and context parallelism gain by it"),
        ({**BLACKWELL, "tp": 2}, {QUEUES: "1"}, "warning", "which Blackwell does not need"),
        (
            {"user_buffers": True},
            {"PYTORCH_ALLOC_CONF": f"backend:native,{EXPANDABLE}"},
            "error",
            "NCCL cannot register buffers",
        ),
        (
            {},
            {"TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK": "1", "PYTORCH_ALLOC_CONF": EXPANDABLE},
            "error",
            "NCCL cannot register buffers",
        ),
        ({"user_buffers": True}, {"NCCL_LOCAL_REGISTER": "0"}, "warning", "no buffer is registered"),
        ({"user_buffers": True}, {"NCCL_NVLS_ENABLE": "0"}, "warning", "Megatron-Core sets it to 1"),
        (HOPPER, {"NCCL_NVLS_ENABLE": "1"}, "warning", "takes GPU memory in every communicator"),
        ({}, {"NCCL_NVLS_ENABLE": "2"}, "warning", "takes GPU memory in every communicator"),
        (
            {"architecture": Architecture.AMPERE, "user_buffers": True},
            {"NCCL_NVLS_ENABLE": "1"},
            "warning",
            "NVLink SHARP comes with Hopper",
        ),
        ({"softcap": True, "attention_backend": "fused"}, {}, "error", "it cannot cap the scores"),
        ({"softcap": True}, {"NVTE_FUSED_ATTN": "1"}, "warning", "cannot cap the scores"),
        ({}, {"NVTE_FUSED_ATTN": "0"}, "error", "Megatron-Core sets it to 1"),
        ({"attention_backend": "flash"}, {"NVTE_UNFUSED_ATTN": "1"}, "error", "Megatron-Core sets it to 0"),
        (
            {"cuda_graphs": True},
            {"PYTORCH_ALLOC_CONF": EXPANDABLE, "NCCL_GRAPH_REGISTER": "1"},
            "error",
            "CUDA graphs then read and write where nothing is",
        ),
        ({}, {"NCCL_CHUNK_SIZE": "1048576"}, "error", "can make what is sent arrive wrong"),
        ({"deterministic": True}, {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "1"}, "error", "is to be deterministic"),
        ({"deterministic": True}, {"CUBLAS_WORKSPACE_CONFIG": ":0:0"}, "error", "is to be deterministic"),
        ({"deterministic": True}, {"NCCL_ALGO": "Tree"}, "error", "is to be deterministic"),
        ({}, {"NCCL_DEBUG": "info"}, "warning", "every rank writes pages"),
        ({}, {"CUDA_LAUNCH_BLOCKING": "1"}, "warning", "nothing overlaps"),
        ({}, {"TORCH_DISTRIBUTED_DEBUG": "DETAIL"}, "warning", "checked across ranks"),
        ({}, {"TORCH_NCCL_BLOCKING_WAIT": "1"}, "warning", "the CPU waits"),
        *(({}, {name: "1"}, "warning", f"{name} does nothing") for name in IGNORED),
        *(
            ({}, {old: "1"}, "warning", f"{old} is called {new} now")
            for old, new in RENAMED.items()
            if not old.startswith("PYTORCH")
        ),
        *(({}, {name: "1"}, "warning", f"{name} is 1; NCCL's manual has it for debugging") for name in DEBUGGING),
    ],
)
def test_a_finding(situation: dict[str, Any], given: dict[str, str], severity: str, said: str) -> None:
    found = [finding for finding in lint(Situation(**situation), given) if said in finding.text]
    assert [finding.severity for finding in found] == [severity], lint(Situation(**situation), given)
    assert found[0].hint
    assert lint(None, given) == []


def test_errors_come_first() -> None:
    found = lint(Situation(fsdp=True), {"NCCL_PROTO": "LL", QUEUES: "1", "NCCL_DEBUG": "TRACE"})
    assert [finding.severity for finding in found] == ["error", "warning", "warning"]


def test_nvls_that_is_asked_for_and_forbidden() -> None:
    found = lint(Situation(**HOPPER), {"NCCL_ALGO": "NVLS", "NCCL_NVLS_ENABLE": "0"})
    assert [(finding.variable, finding.severity) for finding in found] == [
        ("NCCL_NVLS_ENABLE", "error"),
        ("NCCL_ALGO", "warning"),
    ]


def test_the_allocators_two_names() -> None:
    old, new = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"
    assert [finding.text for finding in lint(Situation(), {old: EXPANDABLE})] == [f"{old} is called {new} now"]
    assert lint(Situation(container=True), {old: EXPANDABLE}) == []
    texts = [finding.text for finding in lint(Situation(), {old: EXPANDABLE, new: "backend:native"})]
    assert any("say different things" in text for text in texts)
    # torch takes the former name, so that segments are not expandable here
    given = {old: "backend:native", new: EXPANDABLE}
    assert not [one for one in lint(Situation(user_buffers=True), given) if one.severity == "error"]


@pytest.mark.parametrize(
    ("situation", "given"),
    [
        ({}, {}),
        ({**HOPPER, "tp": 2}, {QUEUES: "1"}),
        ({**HOPPER, "devices": 8}, {QUEUES: "8"}),
        ({**BLACKWELL, "tp": 2}, {QUEUES: "32"}),
        ({"tp": 2}, {QUEUES: "8"}),
        ({**HOPPER, "user_buffers": True}, {"NCCL_NVLS_ENABLE": "1", "PYTORCH_ALLOC_CONF": "backend:native"}),
        ({}, {"NVTE_FLASH_ATTN": "1", "NVTE_FUSED_ATTN": "1", "NVTE_UNFUSED_ATTN": "1"}),
        ({"attention_backend": "fused"}, {"NVTE_FUSED_ATTN": "1", "NVTE_FLASH_ATTN": "0"}),
        ({"deterministic": True}, {"NCCL_ALGO": "Ring", "CUBLAS_WORKSPACE_CONFIG": ":16:8"}),
        ({}, {"NCCL_DEBUG": "WARN", "TORCH_DISTRIBUTED_DEBUG": "OFF", "CUDA_LAUNCH_BLOCKING": "0"}),
        ({}, {"NCCL_P2P_DISABLE": "0", "NCCL_SOCKET_IFNAME": "eth0", "NCCL_IB_HCA": "mlx5", "NCCL_IB_TIMEOUT": "22"}),
        ({}, {"NCCL_NVLS_ENABLE": "0", "NCCL_GRAPH_REGISTER": "0"}),
    ],
)
def test_what_is_right_is_left_alone(situation: dict[str, Any], given: dict[str, str]) -> None:
    assert lint(Situation(**situation), given) == []
