"""Everything that one trial trains with, as in its `config.json`; checked without torch.

Keys under `training` are `TrainingArguments` names, under `lora` PEFT `LoraConfig` names, both
verbatim and both checked against the installed versions.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trial.config import config_rules, dotted, library_arguments, objective_registry
from trial.config.errors import ConfigError, Problem, across, from_pydantic, raise_as_value_error
from trial.config.sections import (
    TRAINING_DEFAULTS,
    DataConfig,
    DeepSpeedSection,
    DeviceName,
    EvaluationSection,
    LoraSection,
    ModelConfig,
    ObjectiveSection,
    Origin,
    Section,
)

VERSION: Literal[1] = 1
NO_EFFECT = {"origin", "version", "keep_checkpoint", "packed"}
"""Keys that have no effect on a result."""
_RULES_CHECKED = object()
"""Validation context of `validate`, which has applied the rules before."""


class TrialConfig(Section):
    """Everything one trial trains with."""

    version: Literal[1] = VERSION
    model: ModelConfig = ModelConfig()
    """The base model."""
    data: DataConfig = DataConfig()
    """The training and evaluation data."""
    lora: LoraSection = LoraSection()
    """The adapter."""
    training: dict[str, Any] = Field(default_factory=dict)
    """`TrainingArguments` and `GaudiTrainingArguments` keys by their own names, and PEFT's
    `loraplus_lr_ratio`: LoRA+ trains every B at that many times the learning rate of every A."""
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    """What training minimises: a name, or `{name: ..., its arguments}`."""
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    """When the trial is evaluated, and which metrics it reports besides the eval loss."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; null trains without DeepSpeed."""
    deepspeed: DeepSpeedSection = DeepSpeedSection()
    """DeepSpeed settings besides `zero_stage`."""
    device: DeviceName = "auto"
    """`auto` takes hpu, else cuda, else cpu."""
    keep: Literal["best", "last"] = "best"
    """Which adapter is saved, and whose eval loss is the trial's value."""
    diverged_above: float | None = Field(default=None, gt=0)
    """A loss above this ends the trial as diverged; NaN and infinity always do."""
    gaudi_config: str | dict[str, Any] = Field(
        default_factory=lambda: {"use_fused_adam": True, "use_fused_clip_norm": True}
    )
    """GaudiConfig inline, or a hub id or folder; only `device: hpu` reads it."""
    packed: bool = False
    """Train in a slot of a packed job, where the trial can; a sweep says so for its trials
    (`resources.pack`). The same training up to rounding."""
    keep_checkpoint: bool = False
    """Leave the last checkpoint of a complete trial there, so that it can be trained for longer; a
    sweep says so for its trials (`resources.keep_checkpoints`)."""
    origin: Origin | None = None

    @field_validator("lora")
    @classmethod
    def _check_lora(cls, lora: LoraSection, info: ValidationInfo) -> LoraSection:
        if info.context is not _RULES_CHECKED:
            raise_as_value_error(config_rules.lora_argument_problems(lora.model_extra or {}))
        return lora

    @field_validator("gaudi_config")
    @classmethod
    def _check_gaudi_config(
        cls, given: str | dict[str, Any], info: ValidationInfo
    ) -> str | dict[str, Any]:
        if isinstance(given, dict) and info.context is not _RULES_CHECKED:
            raise_as_value_error(config_rules.gaudi_config_problems(given))
        return given

    @field_validator("training")
    @classmethod
    def _check_training(cls, training: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if info.context is not _RULES_CHECKED:
            raise_as_value_error(config_rules.training_problems(training))
        return {**TRAINING_DEFAULTS, **training}

    @model_validator(mode="after")
    def _check_zero_stage(self) -> TrialConfig:
        if self.zero_stage is None and self.deepspeed != DeepSpeedSection():
            raise across("zero_stage", "0, 1, 2 or 3, since `deepspeed` is set", None)
        return self

    @model_validator(mode="after")
    def _check_objective(self, info: ValidationInfo) -> TrialConfig:
        if info.context is not _RULES_CHECKED:
            raise_as_value_error(config_rules.cross_section_problems(self.model_dump()))
        return self

    def fingerprint(self) -> str:
        """Hash of everything that has an effect on the result: equal means the same trial."""
        content = self.model_dump(mode="json", exclude=NO_EFFECT)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def difference(self, other: TrialConfig) -> tuple[str, Any, Any] | None:
        """First key that has an effect and differs, its value here and there; None if none does.

        Numbers that differ by their last binary digits are the same: stored values may be sums.
        """
        left, right = (c.model_dump(mode="json", exclude=NO_EFFECT) for c in (self, other))
        here, there = dotted.flatten(left), dotted.flatten(right)
        for key in {**here, **there}:
            if not _same(here.get(key), there.get(key)):
                return key, here.get(key), there.get(key)
        return None


def _same(left: Any, right: Any) -> bool:
    numbers = all(isinstance(value, float) for value in (left, right))
    return left == right or (numbers and math.isclose(left, right, rel_tol=1e-12))


SECTIONS: dict[str, type[BaseModel]] = {
    "model": ModelConfig,
    "data": DataConfig,
    "lora": LoraSection,
    "deepspeed": DeepSpeedSection,
    "objective": ObjectiveSection,
    "evaluation": EvaluationSection,
}


def known_keys() -> dict[str, tuple[str, ...]]:
    """The keys of every section by its name; the empty name is the top level."""
    known = {name: tuple(section.model_fields) for name, section in SECTIONS.items()}
    known["lora"] = tuple(dict.fromkeys([*known["lora"], *library_arguments.lora_arguments()]))
    known["training"] = tuple(
        name
        for name in (
            *library_arguments.training_arguments(),
            *library_arguments.optimizer_arguments(),
        )
        if name not in config_rules.SET_BY_HARNESS
    )
    known["objective"] = ("name", *objective_registry.all_arguments())
    known[""] = tuple(
        name for name in TrialConfig.model_fields if name not in ("version", "origin")
    )
    return known


def known_paths() -> tuple[str, ...]:
    """Every dotted path a search space may vary."""
    known = known_keys()
    leaves = [name for name in known[""] if name not in known]
    return (
        *leaves,
        # The user's own objective may take anything.
        "objective",
        *(f"{section}.{key}" for section in known if section for key in known[section]),
    )


def validate(content: Mapping[str, Any]) -> tuple[TrialConfig | None, list[Problem]]:
    """The configuration, or None and every mistake in it."""
    if not isinstance(content, Mapping):
        return None, [Problem("", "a configuration is a mapping", repr(content))]
    rest = dict(content)
    problems: list[Problem] = []
    for name, rules in config_rules.SECTION_RULES.items():
        section = rest.get(name)
        if isinstance(section, Mapping):
            rest[name] = dict(section)
            problems += rules(section)
    if not isinstance(given := rest.get("gaudi_config", ""), str | Mapping):
        rest.pop("gaudi_config")
        rule = "a GaudiConfig as a mapping, a hub id or a folder"
        problems.append(Problem("gaudi_config", rule, repr(given)))
    problems += config_rules.adapter_problems(rest)
    found = config_rules.objective_problems(rest)
    if found:
        # Left in, `ObjectiveSection` would report its mistakes a second time.
        rest.pop("objective", None)
    problems += found
    try:
        config = TrialConfig.model_validate(rest, context=_RULES_CHECKED)
    except ValidationError as error:
        return None, problems + from_pydantic(error, known_keys())
    return (None, problems) if problems else (config, [])


def problems_of(content: Mapping[str, Any]) -> list[Problem]:
    """Every mistake in a trial's configuration; empty when `parse` would accept it."""
    return validate(content)[1]


def parse(content: Mapping[str, Any]) -> TrialConfig:
    """A checked `TrialConfig`.

    Raises:
        ConfigError: every mistake at once.
    """
    config, problems = validate(content)
    if config is None:
        raise ConfigError(problems)
    return config
