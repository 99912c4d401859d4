"""Keeps the tokens of a set of rows in memory-mapped files, by their content hash."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trial.data.examples import Row
from trial.data.tokens import TokenDataset, Tokens, tokenize_rows
from trial.store.cache_dir import cache_folder

LAYOUT = 1
"""Part of every content hash: increment it when a change of code gives other tokens."""

logger = logging.getLogger(__name__)


class TokenCache:
    """Tokenizes sets of rows with one tokenizer, prompt format and length, each set once."""

    def __init__(
        self, folder: Path | None, prompt_format: str, max_length: int, tokenizer: Any
    ) -> None:
        """Construct the cache; `folder` defaults to the user's cache folder for tokens."""
        self.folder = folder or cache_folder("tokens")
        self.prompt_format = prompt_format
        self.max_length = max_length
        self.tokenizer = tokenizer
        self._settings = [str(LAYOUT), prompt_format, str(max_length), tokenizer_hash(tokenizer)]

    def dataset(self, rows: list[Row]) -> tuple[TokenDataset, str]:
        """The rows as tokens, and the hash of everything that the tokens depend on."""
        content_hash = digest([*self._settings, *(row.digest() for row in rows)])
        pad_id = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad_id is None else pad_id
        tokens = self._tokens(self.folder / content_hash, rows)
        return TokenDataset(tokens, self.max_length, int(pad_id)), content_hash

    def _tokens(self, folder: Path, rows: list[Row]) -> Tokens:
        if (tokens := _load(folder, len(rows))) is not None:
            return tokens
        tokens = tokenize_rows(rows, self.prompt_format, self.max_length, self.tokenizer)
        try:
            _store(tokens, folder)
        except OSError as error:
            logger.warning("tokens stay in memory, %s cannot be written: %s", self.folder, error)
            return tokens
        return _load(folder, len(rows)) or tokens


def digest(parts: Sequence[str]) -> str:
    """SHA-256 of a list of texts, in hexadecimal."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of what a tokenizer does to text, independent of where it was loaded from."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend else dict(tokenizer.get_vocab())
    if backend:
        # Earlier calls leave both behind; the calls here set neither.
        content.pop("padding", None)
        content.pop("truncation", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [type(tokenizer).__name__, content, special, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _load(folder: Path, rows: int) -> Tokens | None:
    """Map the files of one set; None when they are missing or incomplete."""
    try:
        ids = np.load(folder / "ids.npy", mmap_mode="r")
        spans = np.load(folder / "spans.npy")
        truncated = int(json.loads((folder / "counts.json").read_text())["truncated"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    is_complete = spans.shape == (rows, 3) and (not rows or int(spans[-1, 2]) == len(ids))
    return Tokens(ids, spans, truncated) if is_complete else None


def _store(tokens: Tokens, folder: Path) -> None:
    """Write the folder atomically; of several writers at once the first one wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name[:16]}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        np.save(temporary / "ids.npy", tokens.ids)
        np.save(temporary / "spans.npy", tokens.spans)
        (temporary / "counts.json").write_text(json.dumps({"truncated": tokens.truncated}))
        if folder.exists() and _load(folder, len(tokens.spans)) is None:
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    except OSError:
        if _load(folder, len(tokens.spans)) is None:
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
