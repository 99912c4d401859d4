"""What a rehearsal is asked and answers, and which requests were found sound before. Torch-free."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from trial.config.errors import Problem
from trial.config.trial_config import TrialConfig
from trial.preflight.model_checks import MODEL_KEY, TOKENIZER_KEY, find_model
from trial.store.cache_dir import cache_folder

LIBRARIES = (
    "torch", "transformers", "tokenizers", "peft", "accelerate", "deepspeed", "optimum-habana",
)  # fmt: skip
"""Distributions whose versions a verdict depends on."""


@dataclass(frozen=True, slots=True)
class Request:
    """Configurations to rehearse."""

    configs: tuple[TrialConfig, ...]
    device: str = ""
    """`cpu` or `cuda`: build the trainer as on this device. Empty: build optimizer and schedule
    alone, for a device that is not here or that a rehearsal must not occupy."""

    def to_text(self) -> str:
        """The request as JSON."""
        configs = [config.model_dump(mode="json") for config in self.configs]
        return json.dumps({"configs": configs, "device": self.device}, sort_keys=True)

    @classmethod
    def from_text(cls, text: str) -> Request:
        """The request of `to_text`."""
        content = json.loads(text)
        configs = tuple(TrialConfig.model_validate(config) for config in content["configs"])
        return cls(configs, content["device"])

    def key(self) -> str:
        """Hash of all that the answer depends on: configurations, files, versions and code.

        Files count by name, modification time and size.
        """
        parts: list[Any] = [self.to_text(), sys.version, _versions(), _state(_code())]
        parts += [_state(files) for config in self.configs for files in _files(config)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def answer_text(problems: list[Problem]) -> str:
    """An answer as JSON."""
    return json.dumps([asdict(problem) for problem in problems])


def read_answer(text: str) -> list[Problem]:
    """The answer of `answer_text`."""
    return [Problem(**problem) for problem in json.loads(text)]


def known_sound(key: str) -> bool:
    """Whether the request with this key has been rehearsed without a problem."""
    return _mark(key).is_file()


def remember_sound(key: str) -> None:
    """Note that the request with this key was rehearsed without a problem."""
    mark = _mark(key)
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError:
        # A cache that cannot be written costs a rehearsal the next time.
        return


def _mark(key: str) -> Path:
    return cache_folder("rehearsals") / key


def _versions() -> list[str]:
    found = []
    for name in LIBRARIES:
        try:
            found.append(metadata.version(name))
        except metadata.PackageNotFoundError:
            found.append("")
    return found


def _code() -> list[Path]:
    """The modules of this package."""
    return sorted(Path(__file__).parents[1].rglob("*.py"))


def _files(config: TrialConfig) -> Iterator[list[Path]]:
    """Files of a trial's model, tokenizer and data, and others that it names."""
    model = config.model
    names = {MODEL_KEY: model.name_or_path, TOKENIZER_KEY: model.tokenizer_name_or_path}
    for key, name in names.items():
        folder, _ = find_model(name, model.revision, key, ask=False) if name else (None, [])
        yield sorted(folder.path.iterdir()) if folder is not None else []
    data: Mapping[str, Any] = config.data.model_dump()
    paths = [data["path"], data["eval_path"], data["forget_path"], data["alternatives"]]
    paths += [config.deepspeed.config, config.evaluation.retain_model]
    yield [Path(path).expanduser() for path in paths if isinstance(path, str)]


def _state(files: list[Path]) -> list[tuple[str, int, int]]:
    """Name, modification time in nanoseconds and size in bytes of each file that exists."""
    found = []
    for file in files:
        try:
            status = file.stat()
        except OSError:
            continue
        found.append((str(file), status.st_mtime_ns, status.st_size))
    return found
