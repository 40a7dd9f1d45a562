"""The table of environment variables: whole, free of contradictions, and below what the user has set."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import launcher as run
from executors.architecture import Architecture
from executors.conflicts import DEBUGGING, IGNORED, RENAMED
from executors.environment import RULES, Situation, defaults, given_by, refuse_conflicts, undecided, variables
from launcher.errors import ConfigError

SIZES = st.sampled_from([1, 2, 4, 8])
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": SIZES,
    "bool": st.booleans(),
    "str": st.sampled_from(["", "auto", "fused", "gemma2"]),
    "Architecture | None": st.sampled_from([None, *Architecture]),
}
SITUATIONS = st.builds(Situation, **{field.name: VALUES[str(field.type)] for field in fields(Situation)})
GIVEN = st.dictionaries(
    st.sampled_from([*(rule.variable for rule in RULES), *RENAMED, "NCCL_ALGO"]),
    st.sampled_from(["0", "1", "NVLS", "Ring", "expandable_segments:True"]),
)
GUIDE = Path(__file__).parent.parent.parent / "docs" / "environment.md"


def values(situation: Situation | None, **given: str) -> dict[str, str]:
    return {setting.variable: setting.value for setting in variables(situation, given)}


def test_every_rule_says_when_why_and_by_whom() -> None:
    for rule in RULES:
        assert all(text.strip() for text in (rule.value, rule.condition, rule.why, rule.source)), rule.variable
        assert rule.variable not in IGNORED


@settings(deadline=None)
@given(SITUATIONS, GIVEN)
def test_in_any_situation_a_variable_has_one_value_and_the_users_stays(s: Situation, given: dict[str, str]) -> None:
    found = Counter(setting.variable for setting in variables(s, given))
    assert set(found.values()) <= {1}
    assert not found.keys() & given.keys()
    assert not {RENAMED.get(name, name) for name in found} & {RENAMED.get(name, name) for name in given}


@settings(deadline=None)
@given(SITUATIONS)
def test_what_the_table_gives_is_nothing_that_the_linter_has_against(s: Situation) -> None:
    given = values(s)
    renamed = ["PYTORCH_CUDA_ALLOC_CONF"] if s.container else []
    findings = refuse_conflicts(replace(s, attention_backend="auto"), given)
    assert [text for text in findings if not any(name in text for name in renamed)] == []


@pytest.mark.parametrize(
    ("changes", "connections"),
    [
        ({"architecture": Architecture.HOPPER, "tp": 2}, "1"),
        ({"architecture": Architecture.AMPERE, "cp": 2}, "1"),
        ({"architecture": Architecture.HOPPER}, "8"),
        ({"architecture": Architecture.HOPPER, "tp": 2, "fsdp": True}, "8"),
        ({"architecture": Architecture.BLACKWELL, "tp": 2}, "32"),
        ({"architecture": Architecture.BLACKWELL}, "32"),
        ({"architecture": None, "tp": 2}, None),
    ],
)
def test_queues_to_the_gpu(changes: dict[str, Any], connections: str | None) -> None:
    situation = Situation(devices=8, **changes)
    assert values(situation).get("CUDA_DEVICE_MAX_CONNECTIONS") == connections
    assert undecided(situation, {}) == ([] if connections else ["CUDA_DEVICE_MAX_CONNECTIONS"])
    assert undecided(situation, {"CUDA_DEVICE_MAX_CONNECTIONS": "4"}) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"devices": 8, "overlap": True}, {"NVTE_FWD_LAYERNORM_SM_MARGIN": "16", "NVTE_BWD_LAYERNORM_SM_MARGIN": "16"}),
        ({"devices": 8, "overlap": True, "tp": 8}, {}),
        ({"nodes": 2, "devices": 8, "pp": 2}, {"NCCL_P2P_NET_CHUNKSIZE": "2097152"}),
        ({"devices": 8, "pp": 2}, {}),
        (
            {"deterministic": True},
            {"NCCL_ALGO": "Ring", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
        ),
    ],
)
def test_what_is_set_besides(changes: dict[str, Any], expected: dict[str, str]) -> None:
    always = {
        "TORCH_NCCL_HIGH_PRIORITY": "1",
        "NCCL_NVLS_ENABLE": "0",
        "NCCL_GRAPH_REGISTER": "0",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
    }
    assert values(Situation(**changes)) == {**always, **expected}


def test_user_buffers_change_the_memory_and_the_algorithm() -> None:
    expected = {"TORCH_NCCL_HIGH_PRIORITY": "1", "NCCL_NVLS_ENABLE": "1", "NCCL_CTA_POLICY": "1"}
    assert values(Situation(user_buffers=True)) == expected
    assert values(Situation(), TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK="1") == expected
    assert values(Situation(), NCCL_ALGO="nvls,ring")["NCCL_NVLS_ENABLE"] == "1"
    assert "NCCL_NVLS_ENABLE" not in values(Situation(architecture=Architecture.AMPERE, user_buffers=True))


def test_the_allocator_is_called_what_the_torch_there_understands() -> None:
    assert "PYTORCH_CUDA_ALLOC_CONF" not in values(Situation())
    image = values(Situation(container=True))
    assert (image.get("PYTORCH_CUDA_ALLOC_CONF"), image.get("PYTORCH_ALLOC_CONF")) == ("expandable_segments:True", None)
    assert not any("ALLOC_CONF" in name for name in values(Situation(cuda_graphs=True)))
    assert not any("ALLOC_CONF" in name for name in values(Situation(), PYTORCH_CUDA_ALLOC_CONF="backend:native"))


def test_no_training_on_gpus_gets_nothing() -> None:
    assert variables(None, {}) == []
    assert undecided(None, {}) == []


def test_what_the_executor_or_its_environment_sets_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_GRAPH_REGISTER", "1")
    monkeypatch.delenv("TORCH_NCCL_HIGH_PRIORITY", raising=False)
    executor = run.LocalExecutor(env_vars={"NCCL_NVLS_ENABLE": "2"})
    found = defaults(Situation(), executor)
    assert found.keys().isdisjoint({"NCCL_GRAPH_REGISTER", "NCCL_NVLS_ENABLE"})
    assert "TORCH_NCCL_HIGH_PRIORITY" in found
    assert given_by(executor)["NCCL_NVLS_ENABLE"] == "2"


def test_a_conflict_names_the_line_that_set_it() -> None:
    executor = run.LocalExecutor(env_vars={"CUDA_DEVICE_MAX_CONNECTIONS": "1", "NCCL_PROTO": "LL"})
    with pytest.raises(ConfigError, match="FSDP cannot run so") as caught:
        refuse_conflicts(Situation(fsdp=True), given_by(executor), executor)
    assert "test_environment.py:" in str(caught.value.where)
    with pytest.raises(ConfigError) as caught:
        refuse_conflicts(Situation(fsdp=True), {"CUDA_DEVICE_MAX_CONNECTIONS": "1"})
    assert caught.value.where == "the environment"
    [warning] = refuse_conflicts(Situation(), executor.env_vars)
    assert warning.startswith("NCCL_PROTO is LL; NCCL's manual")


def test_the_guides_tables_are_those_of_the_code() -> None:
    """UPDATE_SNAPSHOTS=1 writes them anew."""
    rows = [["variable", "value", "when", "why", "source"], ["---"] * 5]
    rows += [[f"`{rule.variable}`", f"`{rule.value}`", rule.condition, rule.why, rule.source] for rule in RULES]
    names = [["former name", "name"], ["---"] * 2, *([f"`{old}`", f"`{new}`"] for old, new in RENAMED.items())]
    nothing = [["variable", "why it does nothing"], ["---"] * 2, *([f"`{old}`", why] for old, why in IGNORED.items())]
    tables = {"rules": rows, "renamed": names, "ignored": nothing}
    text = GUIDE.read_text()
    expected = text
    for name, table in tables.items():
        before, rest = expected.split(f"<!-- {name} -->\n")
        body = "".join(f"| {' | '.join(row)} |\n" for row in table)
        expected = f"{before}<!-- {name} -->\n{body}<!-- end -->{rest.partition('<!-- end -->')[2]}"
    before, rest = expected.split("<!-- debugging -->\n")
    body = ", ".join(f"`{name}`" for name in DEBUGGING)
    expected = f"{before}<!-- debugging -->\n{body}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        GUIDE.write_text(expected)
    assert text == expected
