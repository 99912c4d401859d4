"""The hub, asked once and briefly: is a name there? Torch-free.

The libraries' own look-ups try again for half a minute when there is no network, which is too long
to learn that a folder's name is misspelt.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
TIMEOUT = 5.0
Kind = Literal["model", "dataset"]
_PROBED: dict[Kind, str] = {"model": "config.json", "dataset": "README.md"}
_YES = ("1", "ON", "YES", "TRUE")


def is_offline() -> bool:
    """Whether the environment forbids asking."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in _YES for name in names)


def cache_folder_of(kind: Kind, name: str) -> Path:
    """Where the local hub cache keeps a repository, whether it is there or not."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return cache / f"{kind}s--{name.replace('/', '--')}"


def cached_snapshot(name: str, revision: str | None) -> Path | None:
    """The folder of a model in the local hub cache, where it has been downloaded."""
    model = cache_folder_of("model", name)
    reference = model / "refs" / (revision or "main")
    commit = reference.read_text().strip() if reference.is_file() else revision or ""
    snapshot = model / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def refusal(kind: Kind, name: str, revision: str | None = None) -> str:
    """Why the hub would not hand out a repository, in words; empty when it would."""
    if is_offline():
        return "HF_HUB_OFFLINE keeps it from being fetched"
    import requests
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(
        name,
        _PROBED[kind],
        repo_type=kind,
        revision=revision,
        endpoint=os.environ.get("HF_ENDPOINT"),
    )
    try:
        answer = requests.head(url, headers=build_hf_headers(), timeout=TIMEOUT)
    except requests.RequestException as error:
        return f"the hub cannot be reached ({type(error).__name__})"
    # The repository exists without the file asked for.
    if answer.status_code < 400 or answer.headers.get("X-Error-Code") == "EntryNotFound":
        return ""
    return f"the hub says {answer.status_code} {answer.headers.get('X-Error-Code', '')}".strip()
