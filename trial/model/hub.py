"""Looks names up on the Hugging Face hub and in its local cache. Torch-free.

One request with a short time-out: the libraries' own look-ups retry for half a minute when there is
no network, which is too long to learn that a folder's name is misspelt.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
TIMEOUT = 5.0
"""Seconds."""
RepoType = Literal["model", "dataset"]
_REQUESTED_FILE: dict[RepoType, str] = {"model": "config.json", "dataset": "README.md"}
"""The file whose headers are asked for; unlike `HfApi.model_info` they show a gated repository."""


def repository_cache(repo_type: RepoType, name: str) -> Path:
    """Where the local hub cache keeps a repository, whether it is there or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{repo_type}s--{name.replace('/', '--')}"


def cached_snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a model in the local hub cache; None where it has not been downloaded."""
    # huggingface_hub's `try_to_load_from_cache` finds single files, and takes 0.2 s to import.
    repository = repository_cache("model", name)
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision or ""
    snapshot = repository / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def unavailable_reason(repo_type: RepoType, name: str, revision: str | None = None) -> str:
    """Why the hub would not hand out a repository, in words; empty when it would."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE keeps it from being fetched"
    import requests
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(name, _REQUESTED_FILE[repo_type], repo_type=repo_type, revision=revision)
    try:
        answer = requests.head(url, headers=build_hf_headers(), timeout=TIMEOUT)
    except requests.RequestException as error:
        return f"the hub cannot be reached ({type(error).__name__})"
    # EntryNotFound: the repository exists without the file asked for.
    if answer.status_code < 400 or answer.headers.get("X-Error-Code") == "EntryNotFound":
        return ""
    return f"the hub says {answer.status_code} {answer.headers.get('X-Error-Code', '')}".strip()
