"""The names of the project's seed, gaudi-finetune-lora-deepspeed, in ours: one table. Torch-free.

A file that uses any of its names at the top is taken for one of the seed's; our own keys may stand
beside them (`device: cpu`), and win over what is only implied.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trial.config import dotted
from trial.config.errors import Problem, nearest
from trial.config.trial_config import known_keys, known_paths
from trial.data import prompts

SAVE_DIR = "save_dir"
NAMES: dict[str, tuple[str, ...]] = {
    "model_id": ("model.name_or_path",),
    "model_family": ("data.prompt_format",),
    "gaudi_config_name": ("gaudi_config",),
    "LoRA.r": ("lora.r",),
    "LoRA.alpha": ("lora.lora_alpha",),
    "LoRA.dropout": ("lora.lora_dropout",),
    "data_path": ("data.path",),
    "split": ("data.name",),
    "batch_size": ("training.per_device_train_batch_size", "training.per_device_eval_batch_size"),
    "gradient_accumulation_steps": ("training.gradient_accumulation_steps",),
    "num_epochs": ("training.num_train_epochs",),
    SAVE_DIR: (),
    "lr": ("training.learning_rate",),
    "weight_decay": ("training.weight_decay",),
    "seed": ("training.seed",),
}
"""Each of the seed's keys, and where its value goes; `save_dir` names the run folder."""

IMPLIED: dict[str, Any] = {
    "model.dtype": "bfloat16",
    "data.max_length": 500,
    "training.bf16": True,
    "training.lr_scheduler_type": "linear",
    # One epoch of the ten that its file asks for.
    "training.warmup_ratio": 0.1,
}
"""What the seed's program fixes and its file does not say."""

DS_CONFIG = "ds_config.json"
"""The seed trains with the DeepSpeed configuration beside its file, on one card too."""

_TOPS = tuple(dict.fromkeys(name.partition(".")[0] for name in NAMES))


@dataclass(slots=True)
class Translation:
    """A file in our keys."""

    content: dict[str, Any]
    said: dict[str, str] = field(default_factory=dict)
    """The seed's name for each dotted path that came from one."""
    save_dir: str | None = None
    problems: list[Problem] = field(default_factory=list)
    """Keys are those of the file."""

    def put(self, name: str, value: Any) -> None:
        """Set what one of the seed's names stands for; whatever stood there is replaced."""
        if name == "model_family":
            value = self._prompt_format(value)
        if name == SAVE_DIR:
            self._save_in(value)
        for path in NAMES[name]:
            dotted.set_value(self.content, path, copy.deepcopy(value))
            self.said[path] = name

    def _prompt_format(self, family: Any) -> Any:
        """The prompt tags of a family, by any text that names it (`llama2-7b`)."""
        if not isinstance(family, str):
            return family
        found = prompts.family_format(family)
        if family in prompts.known_formats() or found == prompts.FALLBACK:
            found = family
        if prompts.format_problem(found):
            known = prompts.known_formats()
            rule = f"names no family of prompt tags; known: {', '.join(known)}"
            self.problems.append(Problem("model_family", rule, repr(family), nearest(found, known)))
            return prompts.AUTO
        return found

    def _save_in(self, folder: Any) -> None:
        if isinstance(folder, str) and folder.strip():
            self.save_dir = folder
        else:
            self.problems.append(Problem(SAVE_DIR, "names a folder", repr(folder)))


def is_seed(content: Mapping[str, Any]) -> bool:
    """Whether a file uses the seed's names."""
    return any(name in _TOPS for name in content)


def translate(content: Mapping[str, Any], folder: Path) -> Translation:
    """One of the seed's files, from `folder`, in our keys; mistakes are noted in what is returned.

    An unknown key is a mistake, and so is a value that is given under both names.
    """
    ours = {name: copy.deepcopy(content[name]) for name in content if name in known_keys()[""]}
    found = Translation(ours)
    found.problems += [_unknown(name) for name in content if name not in (*_TOPS, *ours)]
    twice = {name: path for name in NAMES for path in NAMES[name] if dotted.has_value(ours, path)}
    for name, value in _values(content, found.problems):
        if name in twice:
            rule = f"stands beside {twice[name]}, which is the same: say one of them"
            found.problems.append(Problem(name, rule))
        else:
            found.put(name, value)
    for path, value in IMPLIED.items():
        if not dotted.has_value(found.content, path):
            dotted.set_value(found.content, path, value)
    _add_deepspeed(found, folder / DS_CONFIG)
    return found


def _values(content: Mapping[str, Any], problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    """The seed's keys with their values, `LoRA` taken apart."""
    for top in (name for name in content if name in _TOPS):
        value = content[top]
        if top in NAMES:
            yield top, value
        elif not isinstance(value, dict):
            problems.append(Problem(top, "is a mapping: {r, alpha, dropout}", repr(value)))
        else:
            for key, inner in value.items():
                if f"{top}.{key}" in NAMES:
                    yield f"{top}.{key}", inner
                else:
                    problems.append(_unknown(f"{top}.{key}"))


def _unknown(name: str) -> Problem:
    """The problem of a key that neither the seed nor we have."""
    ours = {path: other for other, paths in NAMES.items() for path in paths}
    top, _, key = name.rpartition(".")
    if name in NAMES:
        return Problem(name, f"stands inside of {top}, as {top}: {{{key}: ...}}", repr(name))
    if not top:
        near = next((known for known in _TOPS if known.lower() == name.lower()), "")
        near = near or nearest(name, [*_TOPS, *known_keys()[""], *known_paths()])
        rule = f"unknown key; the seed's are {', '.join(_TOPS)}"
        return Problem(name, rule, repr(name), ours.get(near, near))
    known = [other for other in NAMES if other.startswith(f"{top}.")]
    near = f"lora.{key}" if key in known_keys()["lora"] else nearest(name, known)
    return Problem(
        name, f"unknown key; known: {', '.join(known)}", repr(name), ours.get(near, near)
    )


def _add_deepspeed(found: Translation, file: Path) -> None:
    """Train with the DeepSpeed configuration beside the file, unless the file says otherwise."""
    content = found.content
    if "deepspeed" in content or ("zero_stage" in content and content["zero_stage"] is None):
        return
    if not file.is_file():
        return
    content["deepspeed"] = {"config": str(file.absolute())}
    if "zero_stage" not in content:
        content["zero_stage"] = _stage_of(file, found.problems)


def _stage_of(file: Path, problems: list[Problem]) -> int:
    """The stage that a DeepSpeed configuration asks for; DeepSpeed's own default is 0."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        stage = (content.get("zero_optimization") or {}).get("stage", 0)
    except (OSError, ValueError, AttributeError) as error:
        problems.append(
            Problem("", f"a DeepSpeed configuration in JSON ({error})", "", "", f"{file}")
        )
        return 0
    if stage in (0, 1, 2, 3) and not isinstance(stage, bool):
        return int(stage)
    rule = "must be 0, 1, 2 or 3"
    problems.append(Problem("zero_optimization.stage", rule, repr(stage), where=str(file)))
    return 0
