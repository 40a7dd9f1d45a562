"""Names instead of folders: hf:// is fetched once, nemo:// is what was imported, and what cannot be had says why."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gemma_runs import SMALLEST, losses, one_after_another, recipe

import launcher
from gemma_models.conversion.sources import checkpoint_folder, imported_folder, source_of
from gemma_models.training.checkpoints import read_info
from launcher.config import Partial
from launcher.errors import CheckpointError
from tests.gemma_models.conversion.hub_server import COMMIT, TOKEN, Hub, hub
from tests.gemma_models.tiny import hf_model

# Each argument is fetched, in this order; "NAME=VALUE" is set first. What comes of it is a line of JSON.
FETCH = """
import json, os, sys
import filelock
from huggingface_hub import snapshot_download
from gemma_models.conversion.sources import checkpoint_folder
from launcher.errors import LaunchError
print('"ready"', flush=True)
for word in sys.argv[1:]:
    name, _, value = word.partition("=")
    if value:
        os.environ[name] = value
        continue
    try:
        print(json.dumps(str(checkpoint_folder(word))), flush=True)
    except LaunchError as error:
        print(json.dumps(str(error)), flush=True)
assert "torch" not in sys.modules
"""
NAME = "google/gemma-3-tiny"
WANTED = {"config.json", "model.safetensors", "special_tokens_map.json", "tokenizer_config.json",
          "generation_config.json", "chat_template.jinja"}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has them, with what nobody needs beside what is needed."""
    folder = tmp_path_factory.mktemp("model")
    hf_model(SMALLEST).save_pretrained(folder)
    for name in ("special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_text(f'{{"name": "{name}"}}')
    for name in ("README.md", "pytorch_model.bin", "consolidated.safetensors", "model-q4.gguf", ".gitattributes"):
        (folder / name).write_text("not needed")
    return folder


@pytest.fixture
def server(model: Path) -> Iterator[Hub]:
    with hub() as found:
        found.models = {NAME: model, "google/gated": model}
        found.gated = {"google/gated"}
        yield found


def environment(server: Hub, folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    # The library gives up on a broken line after five attempts a second apart, and asks before a file for ten.
    return kept | {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(folder / "hf"), **more}


def start(env: dict[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", FETCH, *words], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def said(process: subprocess.Popen[str]) -> list[str]:
    """What each name came to; nothing that was said holds the token."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert TOKEN not in out + err
    return [json.loads(line) for line in out.splitlines() if line != '"ready"']


def test_one_process_fetches_and_the_others_wait(server: Hub, model: Path, tmp_path: Path) -> None:
    server.held.clear()
    env = environment(server, tmp_path)
    processes = [start(env, f"hf://{NAME}") for _ in range(4)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == '"ready"\n'
    assert server.halfway.wait(60)
    time.sleep(1)  # all of them ask while the first file is on its way
    server.held.set()
    folders = {Path(folder) for process in processes for folder in said(process)}
    (folder,) = folders
    assert {path.name for path in folder.iterdir()} == WANTED
    for name in WANTED:
        assert (folder / name).read_bytes() == (model / name).read_bytes()
        assert len(server.got(name)) == 1, name
    assert len([path for _, path, _ in server.seen if "/revision/" in path]) == 1
    before = len(server.seen)
    offline = start(environment(server, tmp_path, HF_HUB_OFFLINE="1"), f"hf://{NAME}")
    assert said(offline) == [str(folder)]
    assert len(server.seen) == before


def test_what_a_broken_connection_left_is_gone_on_with(server: Hub, tmp_path: Path) -> None:
    chunk = 10 * 2**20  # what the library writes at a time
    large, name = tmp_path / "large", "model.safetensors"
    large.mkdir()
    (large / name).write_bytes(os.urandom(2**20) * 48)
    server.models["google/large"] = large
    server.cut[name] = 1
    (folder,) = said(start(environment(server, tmp_path), "hf://google/large"))
    assert (Path(folder) / name).read_bytes() == (large / name).read_bytes()
    assert server.got(name) == [None, f"bytes={2 * chunk}-"]


def test_whole_files_outlive_the_process_that_fetched_them(server: Hub, tmp_path: Path) -> None:
    env = environment(server, tmp_path)
    server.held.clear()
    killed = start(env, f"hf://{NAME}")
    kept = tmp_path / "hf" / "hub" / "models--google--gemma-3-tiny" / "snapshots" / COMMIT
    while len(list(kept.glob("*"))) < len(WANTED) - 1:
        time.sleep(0.02)
    killed.kill()
    killed.communicate()
    server.held.set()
    assert said(start(env, f"hf://{NAME}")) == [str(kept)]
    assert {name: len(server.got(name)) for name in WANTED} == {**dict.fromkeys(WANTED, 1), "model.safetensors": 2}


def test_what_cannot_be_had_says_why(server: Hub, tmp_path: Path) -> None:
    words = ["hf://google/gated", "hf://google/missing", f"hf://{NAME}@other", "HF_TOKEN=hf_other", "hf://google/gated",
             "hf://google/missing", "HF_TOKEN=hf_unknown", f"hf://{NAME}", f"HF_TOKEN={TOKEN}", "hf://google/gated",
             "hf://google/missing"]  # fmt: skip
    found = said(start(environment(server, tmp_path), *words))
    page = f"{server.endpoint}/google/gated"
    accept = f"try: accept them on {page}, then HF_TOKEN=..., or hf auth login"
    closed = "google/gated is open only to who has accepted its terms, and"
    assert found[0] == f"{closed} no token was given\n  {accept}"
    assert found[1].startswith("the hub has no model google/missing, or one that is not shown without a token\n  try:")
    assert found[2].startswith(f"{NAME} has no revision 'other'\n  try: one of ")
    assert found[3] == f"{closed} the account of the token has no access\n  {accept}"
    assert found[4].startswith("the hub has no model google/missing\n  try: a name as google/gemma-3-1b-it")
    assert found[5].startswith("the hub does not know the token it was given\n  try: a new one")
    assert found[6].endswith(f"snapshots/{COMMIT}")
    assert found[7] == found[4]


def test_no_network(server: Hub, tmp_path: Path) -> None:
    offline = start(environment(server, tmp_path, HF_HUB_OFFLINE="1", HF_TOKEN=TOKEN), f"hf://{NAME}")
    nowhere = start(environment(server, tmp_path, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN), f"hf://{NAME}")
    assert said(offline) == [
        f"{NAME} is not whole in {tmp_path}/hf/hub, and HF_HUB_OFFLINE keeps it from being fetched\n"
        f"  try: HF_HUB_OFFLINE=0, or hf download {NAME} where there is a network"
    ]
    (text,) = said(nowhere)
    assert text.startswith(f"{NAME} could not be fetched from http://127.0.0.1:9: ")
    assert "\n  try: the same again, which keeps the files that are whole" in text
    assert not server.seen


def test_import_names_and_a_run_from_either(
    server: Hub, model: Path, tmp_path: Path, launcher_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command imports hf:// into what nemo:// names; two ranks of a run fetch once what both read."""
    env = environment(server, tmp_path, NEMO_CACHE_DIR=str(tmp_path / "nemo"))
    command = [str(Path(sys.executable).parent / "gemma-launch"), "import", f"source=hf://{NAME}@main"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    imported = tmp_path / "nemo" / "models" / "google" / "gemma-3-tiny@main"
    assert done.stdout == f"{imported}\n", done.stderr
    assert "importing: 0.00 of 0.00 GB" in done.stderr
    assert read_info(imported).gemma == SMALLEST
    again = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert f"{imported} exists already and is what nemo:// names" in again.stderr

    monkeypatch.setenv("NEMO_CACHE_DIR", str(tmp_path / "nemo"))
    assert checkpoint_folder(f"nemo://{NAME}@main") == imported
    server.seen.clear()
    names = {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(tmp_path / "fresh"),
        "NEMO_CACHE_DIR": env["NEMO_CACHE_DIR"],
    }
    tasks: list[Any] = [
        recipe(tmp_path, name, steps=1, devices=2, base=base)  # type: ignore[arg-type]
        for name, base in (("hf", f"hf://{NAME}"), ("nemo", f"nemo://{NAME}@main"), ("folder", model))
    ]
    result = launcher.run(
        Partial(one_after_another, tasks=tasks),
        executor=launcher.LocalExecutor(ntasks_per_node=2, env_vars=names),
        progress=False,
    )
    assert [each for each in result.value if isinstance(each, str)] == []
    assert losses(tmp_path / "hf") == losses(tmp_path / "nemo") == losses(tmp_path / "folder")
    assert len(server.got("model.safetensors")) == 1


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher_home: Path) -> None:
    assert str(source_of("hf://google/gemma-3-1b-it@refs/pr/1")) == "hf://google/gemma-3-1b-it@refs/pr/1"
    assert source_of(Path("hf://google/gemma-3-1b-it")) == source_of("hf://google/gemma-3-1b-it")
    assert source_of("google/gemma-3-1b-it") is None
    found = source_of("nemo://google/gemma-3-1b-it@refs/pr/1")
    assert found is not None
    assert imported_folder(found) == launcher_home / "models" / "google" / "gemma-3-1b-it@refs--pr--1"
    with pytest.raises(CheckpointError, match=r"'nemo://google/gemma-3-1b-it' was not imported") as raised:
        checkpoint_folder("nemo://google/gemma-3-1b-it")
    assert raised.value.hint == "gemma-launch import source=hf://google/gemma-3-1b-it"
    for wrong in ("hf://gemma", "hf://google/gemma/more", "nemo://../gemma", "s3://google/gemma", "hf://google/ge mma"):
        with pytest.raises(CheckpointError, match="names no checkpoint"):
            checkpoint_folder(wrong)
