"""Defaults of earlier versions, for configurations that were stored without the keys.

`data.tokenize` and `data.train_on` are newer than the first studies, whose rows were tokenized
apart and trained on the last answer. A stored configuration without the keys keeps that meaning.
Torch-free.
"""

from __future__ import annotations

import json
from typing import Any

DATA = {"tokenize": "apart", "train_on": "last"}
"""Values under `data` of a stored configuration that lacks `data.tokenize`."""


def stored_config(text: str) -> str:
    """The text of a `config.json` with the earlier defaults, where it lacks the keys."""
    content = None if '"tokenize"' in text else _object(text)
    return text if content is None else json.dumps(with_data(content))


def stored_record(text: str) -> str:
    """The text of a `study.json` with the earlier defaults under `spec.base`, if it is as old."""
    content = _object(text)
    spec = content.get("spec") if content else None
    if not content or "defaults" in content or not isinstance(spec, dict):
        return text
    base = spec.get("base", {})
    if not isinstance(base, dict):
        return text
    return json.dumps({**content, "spec": {**spec, "base": with_data(base)}})


def with_data(content: dict[str, Any]) -> dict[str, Any]:
    """A trial's configuration with the earlier defaults, unless it names one of the keys."""
    data = content.get("data", {})
    if not isinstance(data, dict) or any(name in data for name in DATA):
        return content
    return {**content, "data": {**data, **DATA}}


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object in a text; None for any other text, which its reader refuses."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None
