"""Translates files of the seed repository, gaudi-finetune-lora-deepspeed, to our keys.

A file with any of the seed repository's keys at its top level is taken for one of its files. Our
own keys may stand beside them (`device: cpu`), and override the values of `IMPLIED`. Torch-free.
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
"""The seed repository's keys, and the dotted paths of ours that take their value.

`save_dir` has none: it names the folder of the run."""

IMPLIED: dict[str, Any] = {
    "model.dtype": "bfloat16",
    "data.max_length": 500,
    "training.bf16": True,
    "training.lr_scheduler_type": "linear",
    # A tenth of all steps: one of the ten epochs that its file sets.
    "training.warmup_ratio": 0.1,
}
"""Values that the seed repository's program fixes and its file does not contain."""

DS_CONFIG = "ds_config.json"
"""DeepSpeed configuration beside the file; the seed repository uses it on one card too."""

_TOP_KEYS = tuple(dict.fromkeys(name.partition(".")[0] for name in NAMES))


@dataclass(slots=True)
class Translation:
    """A file of the seed repository in our keys."""

    content: dict[str, Any]
    seed_names: dict[str, str] = field(default_factory=dict)
    """Dotted path -> the seed repository's key that its value came from."""
    save_dir: str | None = None
    problems: list[Problem] = field(default_factory=list)
    """Mistakes, under the keys of the file."""

    def set_value(self, name: str, value: Any) -> None:
        """Set, or replace, the values that a key of the seed repository stands for."""
        if name == "model_family":
            value = self._prompt_format(value)
        if name == SAVE_DIR:
            self._set_save_dir(value)
        for path in NAMES[name]:
            dotted.set_value(self.content, path, copy.deepcopy(value))
            self.seed_names[path] = name

    def _prompt_format(self, family: Any) -> Any:
        """The prompt format of a model family, from a text that contains its name (`llama2-7b`)."""
        if not isinstance(family, str):
            return family
        name = prompts.family_format(family)
        if family in prompts.known_formats() or name == prompts.FALLBACK:
            name = family
        if prompts.format_problem(name):
            known = prompts.known_formats()
            rule = f"names no family of prompt tags; known: {', '.join(known)}"
            self.problems.append(Problem("model_family", rule, repr(family), nearest(name, known)))
            return prompts.AUTO
        return name

    def _set_save_dir(self, folder: Any) -> None:
        if isinstance(folder, str) and folder.strip():
            self.save_dir = folder
        else:
            self.problems.append(Problem(SAVE_DIR, "names a folder", repr(folder)))


def is_seed_config(content: Mapping[str, Any]) -> bool:
    """Whether a file uses keys of the seed repository."""
    return any(name in _TOP_KEYS for name in content)


def translate(content: Mapping[str, Any], folder: Path) -> Translation:
    """Translate a file that lies in `folder`; its mistakes are in the returned `problems`.

    An unknown key is a mistake, and so is a value that is given under both names.
    """
    ours = {name: copy.deepcopy(content[name]) for name in content if name in known_keys()[""]}
    translation = Translation(ours)
    translation.problems += [_unknown(name) for name in content if name not in (*_TOP_KEYS, *ours)]
    duplicates = {
        name: path for name in NAMES for path in NAMES[name] if dotted.has_value(ours, path)
    }
    for name, value in _values(content, translation.problems):
        if name in duplicates:
            rule = f"stands beside {duplicates[name]}, which is the same: say one of them"
            translation.problems.append(Problem(name, rule))
        else:
            translation.set_value(name, value)
    for path, value in IMPLIED.items():
        if not dotted.has_value(translation.content, path):
            dotted.set_value(translation.content, path, value)
    _add_deepspeed(translation, folder / DS_CONFIG)
    return translation


def _values(content: Mapping[str, Any], problems: list[Problem]) -> Iterator[tuple[str, Any]]:
    """The seed repository's keys with their values; `LoRA` is flattened to dotted keys."""
    for top in (name for name in content if name in _TOP_KEYS):
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
    """The problem of a key that neither the seed repository nor we have."""
    ours = {path: other for other, paths in NAMES.items() for path in paths}
    top, _, key = name.rpartition(".")
    if name in NAMES:
        return Problem(name, f"stands inside of {top}, as {top}: {{{key}: ...}}", repr(name))
    if not top:
        near = next((known for known in _TOP_KEYS if known.lower() == name.lower()), "")
        near = near or nearest(name, [*_TOP_KEYS, *known_keys()[""], *known_paths()])
        rule = f"unknown key; the seed's are {', '.join(_TOP_KEYS)}"
        return Problem(name, rule, repr(name), ours.get(near, near))
    known = [other for other in NAMES if other.startswith(f"{top}.")]
    near = f"lora.{key}" if key in known_keys()["lora"] else nearest(name, known)
    return Problem(
        name, f"unknown key; known: {', '.join(known)}", repr(name), ours.get(near, near)
    )


def _add_deepspeed(translation: Translation, file: Path) -> None:
    """Use the DeepSpeed configuration beside the file, unless the file sets another or none."""
    content = translation.content
    if "deepspeed" in content or ("zero_stage" in content and content["zero_stage"] is None):
        return
    if not file.is_file():
        return
    content["deepspeed"] = {"config": str(file.absolute())}
    if "zero_stage" not in content:
        content["zero_stage"] = _stage_of(file, translation.problems)


def _stage_of(file: Path, problems: list[Problem]) -> int:
    """The ZeRO stage of a DeepSpeed configuration; DeepSpeed's own default is 0."""
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
