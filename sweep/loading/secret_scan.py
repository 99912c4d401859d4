"""Refuse secrets in a sweep file, which is stored with its study and shown in its report.

A secret is known by the form of its text or by the name of its key; other secrets are not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sweep.loading.raw_sweep import RawSweep
from sweep.storage.url import HIDDEN, masked
from trial.config.errors import Problem

RULE = (
    "looks like a secret, and a sweep file is stored with its study: leave it to the environment "
    "(HF_TOKEN, WANDB_API_KEY, GAUDI_SWEEP_STORAGE, ...)"
)

_KEY = re.compile(
    r"(?i)(.*_)?(pass(word|wd|phrase)?|pwd|secret|credentials?|(api|access|private|secret)_?key"
    r"|((hub|auth|access|api|bearer|session|hf|wandb)_?)token|token)"
)
_VALUE = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bgh[oprsu]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}"
    r"|\bA(KIA|SIA)[0-9A-Z]{16}\b"  # AWS
    r"|\bsk-[A-Za-z0-9_-]{20,}|\bxox[abprs]-[\w-]{10,}|\bAIza[\w-]{30,}"
    # JSON web tokens, from their second part on: looking for the first would take a time quadratic
    # in the length of a text of many `eyJ-`.
    r"|(?<=[\w-]{13})\.eyJ[\w-]{10,}+\.[\w-]"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)


def is_secret_key(key: str) -> bool:
    """Whether the last part of a dotted key names a secret; `eos_token` and the like do not."""
    word = key.rpartition(".")[2]
    return bool(_KEY.fullmatch(word)) and not re.fullmatch(
        r"(?i)(eos|bos|pad|unk|sep|cls|mask|image|end|start|stop)_token", word
    )


def has_secret(text: str) -> bool:
    """Whether a text holds something of the form of a secret."""
    return bool(_VALUE.search(text)) or masked(text) != text


def refuse_secrets(raw: RawSweep) -> None:
    """Note a problem for every secret in a sweep file, its comments included, and in overrides."""
    for key, value in _scalars(raw.content):
        text = str(value)
        if has_secret(text) or (is_secret_key(key) and text and value is not None):
            where = raw.locate(key).replace(text, HIDDEN)
            raw.add_problem(Problem(key, RULE, HIDDEN, where=where))
    found = {problem.where for problem in raw.problems}
    for number, line in enumerate(raw.source.read_text(encoding="utf-8").splitlines(), 1):
        if has_secret(line) and (where := f"{raw.source}:{number}") not in found:
            raw.add_problem(Problem("", RULE, HIDDEN, where=where))


def _scalars(content: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _scalars(value, f"{path}.{key}" if path else str(key))
    elif isinstance(content, list):
        for value in content:
            yield from _scalars(value, path)
    else:
        yield path, content
