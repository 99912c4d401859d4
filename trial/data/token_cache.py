"""Keeps the tokens of a set of rows in memory-mapped files, by their content hash.

An entry is checked against the hashes of its files when it is opened, and made anew if it is
damaged.
"""

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
from trial.data.tokens import TokenDataset, Tokens, TokenSettings, tokenize_rows
from trial.store import manifest
from trial.store.cache_dir import cache_folder
from trial.store.files import sync_folder, sync_tree

LAYOUT = 5
"""Part of the key of every set: increment it when a change of code gives other tokens or files."""
_APART_LAYOUT = 1
"""The same in the data hashes of `tokenize: apart`, which do not change any more."""

logger = logging.getLogger(__name__)


class TokenCache:
    """Tokenizes sets of rows with one tokenizer and its settings, each set once."""

    def __init__(self, folder: Path | None, settings: TokenSettings, tokenizer: Any) -> None:
        """Construct the cache; `folder` defaults to the user's cache folder for tokens."""
        self.folder = folder or cache_folder("tokens")
        self.settings = settings
        self.tokenizer = tokenizer
        self._shared = [settings.prompt_format, str(settings.max_length), tokenizer_hash(tokenizer)]

    def dataset(self, rows: list[Row]) -> tuple[TokenDataset, str]:
        """The rows as tokens, and the hash of tokens and labels.

        Under `tokenize: apart` it is the hash of what they were made of, as it was in the versions
        that made the studies which go on with it.
        """
        content = [*self._shared, *(row.digest() for row in rows)]
        settings = self.settings
        pad_id = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad_id is None else pad_id
        key = digest([str(LAYOUT), settings.train_on, settings.tokenize, *content])
        tokens, content_hash = self._tokens(self.folder / key, rows)
        if settings.tokenize == "apart":
            content_hash = digest([str(_APART_LAYOUT), *content])
        return TokenDataset(tokens, settings.max_length, int(pad_id)), content_hash

    def _tokens(self, folder: Path, rows: list[Row]) -> tuple[Tokens, str]:
        """The tokens and their hash, from the files or made anew."""
        if (found := _load(folder, len(rows))) is not None:
            return found
        if folder.exists():
            logger.warning("tokens in %s are damaged: they are made anew", folder)
        tokens = tokenize_rows(rows, self.settings, self.tokenizer)
        content_hash = tokens.content_hash()
        try:
            _store(tokens, content_hash, folder)
        except OSError as error:
            logger.warning("tokens stay in memory, %s cannot be written: %s", self.folder, error)
            return tokens, content_hash
        return _load(folder, len(rows)) or (tokens, content_hash)


def measured_hash(tokens: Tokens, tokenizer: Any) -> str:
    """Hash of a set's ids and labels, and of the words that the tokenizer has for those ids.

    Losses of two models are of the same targets only where it is equal; the order of the rows,
    which follows `split_seed`, is no part of it.
    """
    words = tokenizer.convert_ids_to_tokens(np.unique(tokens.ids).tolist())
    return digest([tokens.rows_hash(), *map(str, words)])


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


_COUNTS = ("truncated", "lost", "text_bytes", "text_hash", "date")
"""Fields of `Tokens` in `counts.json`, beside the hash."""
_ARRAYS = ("ids.npy", "trained.npy", "spans.npy")


def _load(folder: Path, rows: int) -> tuple[Tokens, str] | None:
    """Map the files of one set; None when they are missing, incomplete or damaged."""
    try:
        content = json.loads((folder / "counts.json").read_text(encoding="utf-8"))
        stamps = manifest.Manifest.model_validate(content).files
        is_whole = content.get("sha256") and manifest.is_sealed(content)
        if (
            not is_whole
            or set(stamps) != set(_ARRAYS)
            or manifest.damage(folder, stamps, deep=True)
        ):
            return None
        ids = np.load(folder / "ids.npy", mmap_mode="r")
        trained = np.load(folder / "trained.npy", mmap_mode="r")
        spans = np.load(folder / "spans.npy")
        counts, content_hash = {name: content[name] for name in _COUNTS}, str(content["hash"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    size = int(spans[-1, 1]) if rows and spans.shape == (rows, 2) else 0
    is_complete = spans.shape == (rows, 2) and size == len(ids) == len(trained)
    return (Tokens(ids, trained, spans, **counts), content_hash) if is_complete else None


def _store(tokens: Tokens, content_hash: str, folder: Path) -> None:
    """Write the folder atomically; of several writers at once the first one wins."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name[:16]}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        np.save(temporary / "ids.npy", tokens.ids)
        np.save(temporary / "trained.npy", tokens.trained)
        np.save(temporary / "spans.npy", tokens.spans)
        stamps = manifest.stamp_all(temporary, [temporary])
        counts = {name: getattr(tokens, name) for name in _COUNTS} | {"hash": content_hash}
        counts["files"] = {name: stamp.model_dump() for name, stamp in stamps.items()}
        (temporary / "counts.json").write_text(json.dumps(manifest.seal(counts)), encoding="utf-8")
        sync_tree(temporary)
        if folder.exists() and _load(folder, len(tokens.spans)) is None:
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
        sync_folder(folder.parent)
    except OSError:
        if _load(folder, len(tokens.spans)) is None:
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
