"""Models of the Hugging Face hub, fetched once a node.

huggingface_hub does the work, into its own cache: HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE mean what they
mean there, a file is gone on with where its connection broke, and whole ones outlive the process that fetched them.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from pathlib import Path

from launcher.errors import CheckpointError

# What a checkpoint is read from. Weights in other formats, and what lies in subfolders, stay where they are.
_FILES = ["model*.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "adapter_config.json",
          "config.json", "generation_config.json", "chat_template.jinja", "tokenizer*", "special_tokens_map.json",
          "added_tokens.json", "processor_config.json"]  # fmt: skip


@functools.cache
def fetch(name: str, revision: str | None = None) -> Path:
    """The folder of the hub's model ``name`` at ``revision`` (None: its main branch), in huggingface_hub's cache.

    The first process that asks fetches it; those that ask meanwhile, on this node or any that shares the cache, wait
    for it and ask nobody. Raises CheckpointError for a model that is not there, not open to the token, or cannot be
    fetched now.
    """
    from filelock import FileLock
    from huggingface_hub import constants

    locks = Path(constants.HF_HUB_CACHE).expanduser() / ".locks" / f"models--{name.replace('/', '--')}"
    fetched = locks / f"gemma-launcher-{(revision or 'main').replace('/', '--')}"
    asked = time.time()
    try:
        locks.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{fetched}.lock"):
            if fetched.exists() and fetched.stat().st_mtime >= asked:
                return Path(fetched.read_text(encoding="utf-8"))
            folder = _download(name, revision)
            fetched.write_text(str(folder), encoding="utf-8")
            return folder
    except OSError as error:
        raise CheckpointError(
            f"{name} cannot be kept in {constants.HF_HUB_CACHE}: {error}", hint="HF_HOME=/a/folder with room"
        ) from None


def _download(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    print(f"looking {name} up on the Hugging Face hub, and fetching what is not here", file=sys.stderr, flush=True)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, ignore_patterns=["*/*"]))
    except Exception as error:  # the hub's, the connection's and the disk's, of a dozen kinds that share no base
        # Not "from error": what a library says of a request may hold its headers.
        raise _explained(error, name, revision) from None


def _explained(error: Exception, name: str, revision: str | None) -> CheckpointError:
    """What went wrong, in one message, without the token."""
    from huggingface_hub import constants, errors, get_token

    token = get_token()
    page = f"{constants.ENDPOINT}/{name}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):
        given = "no token was given" if token is None else "the account of the token has no access"
        return CheckpointError(
            f"{name} is open only to who has accepted its terms, and {given}",
            hint=f"accept them on {page}, then HF_TOKEN=..., or hf auth login",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{name} has no revision {revision!r}", hint=f"one of {page}/tree/main, or none")
    if isinstance(error, errors.RepositoryNotFoundError):
        unseen = "" if token is not None else ", or one that is not shown without a token"
        return CheckpointError(
            f"the hub has no model {name}{unseen}", hint="a name as google/gemma-3-1b-it, or HF_TOKEN=..."
        )
    if status == 401:
        return CheckpointError(
            "the hub does not know the token it was given", hint="a new one from its settings page, as HF_TOKEN=..."
        )
    if constants.HF_HUB_OFFLINE:
        return CheckpointError(
            f"{name} is not whole in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE keeps it from being fetched",
            hint=f"HF_HUB_OFFLINE=0, or hf download {name} where there is a network",
        )
    cause = str(error).strip().splitlines() or [""]
    text = f"{type(error).__name__}: {cause[0]}"
    for secret in filter(None, (token, os.environ.get("HF_TOKEN"))):
        text = text.replace(secret, "[token]")
    return CheckpointError(
        f"{name} could not be fetched from {constants.ENDPOINT}: {text}",
        hint="the same again, which keeps the files that are whole; without a network, a folder",
    )
