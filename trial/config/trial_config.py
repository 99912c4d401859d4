"""What one trial trains: the contract written to `config.json`, checked without torch.

Keys under `training` are `TrainingArguments` names, under `lora` PEFT `LoraConfig` names, both
verbatim and both checked against the installed versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trial.config import library_arguments, objective_registry
from trial.config.errors import ConfigError, Problem, across, from_pydantic, nearest_choice, unknown

VERSION: Literal[1] = 1
NO_EFFECT = {"origin", "version", "keep_checkpoint", "packed"}
"""Keys that have no effect on a result."""
Scalar = bool | int | float | str | None
DeviceName = Literal["auto", "cpu", "cuda", "hpu"]

TRAINING_DEFAULTS: dict[str, Any] = {
    "seed": 42,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "cosine",
    "warmup_ratio": 0.03,
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    # optimum-habana's value, for every device: 1e-8 vanishes beside a bf16 second moment.
    "adam_epsilon": 1e-6,
    "num_train_epochs": 1.0,
    "max_steps": -1,
    "eval_strategy": "steps",
    "eval_steps": 0.1,
    "logging_steps": 10,
    "save_strategy": "steps",
    "report_to": "none",
    "optim": "adamw_torch",
}

OURS: dict[str, str] = {
    "output_dir": "the trial folder is the output",
    "overwrite_output_dir": "the trial folder is the output",
    "logging_dir": "logs go to the trial folder",
    "use_habana": "say `device: hpu`",
    "use_cpu": "say `device: cpu`",
    "no_cuda": "say `device: cpu`",
    "use_mps_device": "devices are auto, cpu, cuda and hpu",
    "resume_from_checkpoint": "a trial goes on from its own newest checkpoint by itself",
    "deepspeed": "say `deepspeed: {config: ...}` and `zero_stage`",
    "remove_unused_columns": "the dataset holds only what the model takes",
    "label_names": "labels are always `labels`",
    "local_rank": "ranks are started by the harness",
    "load_best_model_at_end": "say `keep: best` or `keep: last`",
    "metric_for_best_model": "the metric is eval_loss",
    "greater_is_better": "the metric is eval_loss",
    "auto_find_batch_size": "it would change the configuration being compared",
    "ignore_data_skip": "it would make a resumed trial differ",
    "restore_callback_states_from_checkpoint": "resuming is the harness's own",
    "push_to_hub": "sweeps stay offline; export the winner",
    "torchdynamo": "say `torch_compile: true`",
}
"""Training arguments that the harness sets itself, and what to say instead."""

_AT_LEAST: dict[str, tuple[float, bool]] = {
    "learning_rate": (0, False),
    "per_device_train_batch_size": (1, True),
    "per_device_eval_batch_size": (1, True),
    "gradient_accumulation_steps": (1, True),
    "warmup_ratio": (0, True),
    "warmup_steps": (0, True),
    "weight_decay": (0, True),
    "max_grad_norm": (0, True),
    "adam_epsilon": (0, False),
    "num_train_epochs": (0, False),
    "logging_steps": (0, False),
    "eval_steps": (0, False),
    "save_steps": (0, False),
    "seed": (0, True),
    "label_smoothing_factor": (0, True),
    "adam_beta1": (0, True),
    "adam_beta2": (0, True),
}
_STEPS = ("logging_steps", "eval_steps", "save_steps")
_NEEDED_BY_SCHEDULER = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
_SHARES = ("warmup_ratio", "label_smoothing_factor", "adam_beta1", "adam_beta2")
"""Arguments that are at most 1."""
_SEEDS = 2**32
"""Seeds are below this: numpy's generator takes no other."""


class Section(BaseModel):
    """A frozen part of a file: unknown keys are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        validate_default=True,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )


class ModelConfig(Section):
    """The frozen base model."""

    name_or_path: str = "builtin:tiny-llama"
    """`builtin:tiny-llama`, a local folder, or a hub id."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the base weights; adapters stay float32."""
    attn_implementation: str | None = None
    """`eager`, `sdpa`, `gaudi_fused_sdpa`, ...; the model's own default when null."""
    tokenizer_name_or_path: str | None = None
    """Where the tokenizer is, when not beside the model."""
    trust_remote_code: bool = False
    """Run Python files that come with the model. Off unless asked for; said aloud when on."""


class DataConfig(Section):
    """Question and answer, prompt and completion, or chat rows; `eval` is always held out."""

    path: str = "builtin:python-docs"
    """`builtin:python-docs`, a CSV, JSON, JSONL or Parquet file, a saved dataset, or a hub id."""
    name: str | None = None
    """Configuration name of a hub dataset."""
    split: str = "train"
    """Split of a hub or saved dataset to draw from."""
    format: Literal["auto", "csv", "json", "jsonl", "parquet", "dataset"] = "auto"
    """How to read `path`; `auto` goes by its ending."""
    delimiter: str | None = None
    """CSV delimiter; sniffed when null."""
    prompt_column: str | None = None
    """Column of the prompt; `question`, `prompt` or `instruction` when null."""
    completion_column: str | None = None
    """Column of the completion; `answer`, `completion`, `response` or `output` when null."""
    messages_column: str | None = None
    """Column of chat messages (`role`, `content`); `messages` or `conversations` when null."""
    prompt_format: str = "auto"
    """A family of prompt tags (`llama2`, `phi`, ...), `chat_template`, `plain`, or `auto`."""
    max_length: int = Field(default=512, ge=8)
    """Tokens per row; every row is padded to it, so that shapes stay fixed."""
    eval_path: str | None = None
    """A held-out file of its own instead of a split by seed."""
    eval_split: str | None = None
    """A held-out split of its own instead of a split by seed."""
    eval_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows held out, when there is no eval set of its own."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the held-out split; apart from `training.seed`, so that seeds share one eval set."""
    max_train_samples: int | None = Field(default=None, ge=1)
    """Train on at most so many rows."""
    max_eval_samples: int | None = Field(default=None, ge=1)
    """Evaluate on at most so many rows."""
    forget_path: str | None = None
    """Rows to be forgotten, read as `path` is; `path` is then what is to be retained, and its rows
    that ask the same are left out."""
    forget_name: str | None = None
    """Configuration name of the hub dataset at `forget_path`; `name` when null."""
    forget_split: str = "train"
    """Split of the dataset at `forget_path`."""
    max_forget_samples: int | None = Field(default=None, ge=1)
    """Forget at most so many rows."""
    alternatives: str | tuple[str, ...] | None = None
    """What to answer instead (idk, dpo): texts, or a file with one a line; a few refusals when
    null."""
    alternative_column: str | None = None
    """Column of the forget set with another answer for each row, instead of `alternatives`."""

    @field_validator("alternatives", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return tuple(given) if isinstance(given, list) else given


class LoraSection(BaseModel):
    """PEFT `LoraConfig` keys by their own names; `r: 0` trains the whole model instead."""

    model_config = ConfigDict(
        frozen=True, extra="allow", strict=True, use_attribute_docstrings=True
    )

    r: int = Field(default=8, ge=0)
    """Rank of the adapter matrices."""
    lora_alpha: float = Field(default=16, gt=0)
    """Scaling numerator: effective scale alpha / r, or alpha / sqrt(r) with rsLoRA."""
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout before the adapter."""
    use_rslora: bool = False
    """Scale by alpha / sqrt(r)."""
    use_dora: bool = False
    """Weight-decomposed LoRA."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained too."""
    target_modules: str | list[str] = "all-linear"
    """Module names, one regular expression, or `all-linear` (all but the output head)."""

    @property
    def scale(self) -> float:
        """Effective scale of the adapter's update; 0 without an adapter."""
        if not self.r:
            return 0.0
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)


class DeepSpeedSection(Section):
    """DeepSpeed beyond the stage."""

    config: str | dict[str, Any] | None = None
    """The user's own `ds_config.json`: a path or the mapping itself."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Where optimizer states live (stages 1 to 3)."""
    offload_param: Literal["none", "cpu"] = "none"
    """Where parameters live (stage 3)."""


class ObjectiveSection(BaseModel):
    """What training minimises: a name alone, or `{name: ..., its arguments}`."""

    model_config = ConfigDict(
        frozen=True, extra="allow", strict=True, use_attribute_docstrings=True
    )

    name: str = objective_registry.PLAIN
    """`sft`, `grad_ascent`, `grad_diff`, `kl`, `idk`, `dpo`, `npo`, `simnpo`, or your own
    `package.module:function`; docs/objectives.md lists the arguments."""

    @model_validator(mode="before")
    @classmethod
    def _in_full(cls, content: Any) -> Any:
        if isinstance(content, cls):
            return content
        content = {"name": content} if isinstance(content, str) else content
        _raise_first(objective_registry.problems_of(content))
        name = content.get("name", objective_registry.PLAIN)
        return {"name": name, **objective_registry.with_defaults(name, content)}

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of the objective."""
        return dict(self.model_extra or {})

    @property
    def is_plain(self) -> bool:
        """Whether the ordinary trainer computes it."""
        return self.name == objective_registry.PLAIN


class EvaluationSection(Section):
    """When a trial is evaluated, and what that reports beside the eval loss.

    The built-in figures need a forget set.
    """

    steps: list[int] | None = None
    """Evaluate after these optimizer steps and after the last one, and at no other; null goes by
    `training.eval_steps`."""
    metrics: list[str] | None = None
    """Names of figures (docs/objectives.md), or your own `package.module:function`; null takes
    every figure that the data allow."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Tokens generated for each ROUGE-L answer."""
    generate_rows: int = Field(default=16, ge=1)
    """So many rows of either set are answered in words for ROUGE-L."""
    retain_model: str | None = None
    """Folder of a trial that never saw the forget set (`objective: sft` with the same
    `data.forget_path`); forget quality compares with it."""

    @field_validator("steps")
    @classmethod
    def _ascending(cls, steps: list[int] | None) -> list[int] | None:
        if steps is not None and (not steps or steps[0] < 1 or steps != sorted(set(steps))):
            raise ValueError("optimizer steps from 1 on, ascending")
        return steps

    @field_validator("metrics")
    @classmethod
    def _metric_names(cls, metrics: list[str] | None) -> list[str] | None:
        _raise_first(objective_registry.metric_problems(metrics or []))
        return metrics


class Origin(Section):
    """Where a trial came from; has no effect on training."""

    study: str
    number: int = Field(ge=0)
    params: dict[str, Any] = Field(default_factory=dict)
    """What the sampler drew, by dotted path."""
    confirms: int | None = None
    """Number of the trial that this one repeats with another seed."""
    continues: int | None = None
    """Number of the finished trial that this one trains for longer."""
    changes: list[str] = Field(default_factory=list)
    """What the harness changed, in words: after a failure, or when a trial was carried over."""

    @property
    def searched(self) -> bool:
        """Whether the trial belongs to the search, and not to what was done with its results."""
        return self.confirms is None and self.continues is None


class TrialConfig(Section):
    """Everything one trial trains with."""

    version: Literal[1] = VERSION
    model: ModelConfig = ModelConfig()
    """The base model."""
    data: DataConfig = DataConfig()
    """What it is trained and evaluated on."""
    lora: LoraSection = LoraSection()
    """The adapter."""
    training: dict[str, Any] = Field(default_factory=dict)
    """`TrainingArguments` and `GaudiTrainingArguments` keys by their own names."""
    objective: ObjectiveSection = Field(default_factory=ObjectiveSection)
    """What training minimises: a name, or `{name: ..., its arguments}`."""
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection)
    """When the trial is evaluated, and what that reports beside the eval loss."""
    zero_stage: Literal[0, 1, 2, 3] | None = None
    """DeepSpeed ZeRO stage; null trains without DeepSpeed."""
    deepspeed: DeepSpeedSection = DeepSpeedSection()
    """DeepSpeed beyond the stage."""
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
    def _lora_names(cls, lora: LoraSection) -> LoraSection:
        _raise_first(
            _argument_problems("lora", lora.model_extra or {}, library_arguments.lora_arguments())
        )
        return lora

    @field_validator("gaudi_config")
    @classmethod
    def _gaudi_names(cls, given: str | dict[str, Any]) -> str | dict[str, Any]:
        if isinstance(given, dict):
            _raise_first(_gaudi_config_problems(given))
        return given

    @field_validator("training")
    @classmethod
    def _training_names(cls, training: dict[str, Any]) -> dict[str, Any]:
        _raise_first(training_problems(training))
        return {**TRAINING_DEFAULTS, **training}

    @model_validator(mode="after")
    def _stage_agrees(self) -> TrialConfig:
        if self.zero_stage is None and self.deepspeed != DeepSpeedSection():
            raise across("zero_stage", "0, 1, 2 or 3, since `deepspeed` is set", None)
        return self

    @model_validator(mode="after")
    def _objective_agrees(self) -> TrialConfig:
        _raise_first(agreement(self.model_dump()))
        return self

    def fingerprint(self) -> str:
        """Hash of everything that has an effect on the result: equal means the same trial."""
        content = self.model_dump(mode="json", exclude=NO_EFFECT)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


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
        name for name in library_arguments.training_arguments() if name not in OURS
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


def training_problems(training: Mapping[str, Any]) -> list[Problem]:
    """Every mistake under `training`."""
    problems = [
        Problem(f"training.{name}", f"is set by the harness: {OURS[name]}", repr(training[name]))
        for name in training
        if name in OURS
    ]
    rest = {name: value for name, value in training.items() if name not in OURS}
    problems += _argument_problems("training", rest, library_arguments.training_arguments())
    problems += _reporter_problems(rest.get("report_to"))
    if isinstance(seed := rest.get("seed"), int) and seed >= _SEEDS:
        problems.append(Problem("training.seed", "must be below 2**32", repr(seed)))
    named = {problem.key for problem in problems}
    for name, (low, inclusive) in _AT_LEAST.items():
        value = rest.get(name)
        if value is None or f"training.{name}" in named:
            continue
        if value < low or (value == low and not inclusive):
            rule = f"must be {'at least' if inclusive else 'greater than'} {low}"
            problems.append(Problem(f"training.{name}", rule, repr(value)))
    for name in _SHARES:
        value = rest.get(name)
        if isinstance(value, int | float) and f"training.{name}" not in named and value > 1:
            problems.append(Problem(f"training.{name}", "must be at most 1", repr(value)))
    for name in _STEPS:
        value = rest.get(name)
        if isinstance(value, float) and value > 1 and not value.is_integer():
            rule = "a whole number of steps, or below 1 a share of all"
            problems.append(Problem(f"training.{name}", rule, repr(value)))
    return [*problems, *_scheduler_problems(rest)]


def _scheduler_problems(training: Mapping[str, Any]) -> list[Problem]:
    """What a scheduler needs of its keywords: transformers says so only inside a worker."""
    name, given = training.get("lr_scheduler_type"), training.get("lr_scheduler_kwargs")
    needed = _NEEDED_BY_SCHEDULER.get(name, ()) if isinstance(name, str) else ()
    if not needed or (isinstance(given, Mapping) and any(key in given for key in needed)):
        return []
    rule = f"{name} needs {' or '.join(needed)} here"
    return [Problem("training.lr_scheduler_kwargs", rule, "null" if given is None else repr(given))]


def _reporter_problems(given: Any) -> list[Problem]:
    """Names of trackers that transformers does not know; it says so only inside a worker."""
    known = library_arguments.reporters()
    named = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    wrong = [name for name in named if isinstance(name, str) and name not in known]
    return [replace(unknown(name, known, "tracker"), key="training.report_to") for name in wrong]


def problems_of(content: Mapping[str, Any]) -> list[Problem]:
    """Every mistake in a trial's configuration; empty when `TrialConfig` would accept it."""
    if not isinstance(content, Mapping):
        return [Problem("", "a configuration is a mapping", repr(content))]
    rest = dict(content)
    problems: list[Problem] = []
    for name, check in _LOOSE.items():
        section = rest.get(name)
        if isinstance(section, Mapping):
            found = check(section)
            problems += found
            bad = {problem.key.partition(".")[2] for problem in found}
            if "lr_scheduler_kwargs" in bad:
                # Without them the scheduler itself would be refused once more.
                bad.add("lr_scheduler_type")
            rest[name] = {key: value for key, value in section.items() if key not in bad}
    if not isinstance(given := rest.get("gaudi_config", ""), str | Mapping):
        rest.pop("gaudi_config")
        rule = "a GaudiConfig as a mapping, a hub id or a folder"
        problems.append(Problem("gaudi_config", rule, repr(given)))
    found = _objective_problems(rest)
    if found:
        # Half an objective would be refused once more, for what is missing.
        rest.pop("objective", None)
    problems += found
    try:
        TrialConfig.model_validate(rest)
    except ValidationError as error:
        problems += from_pydantic(error, known_keys())
    return problems


def parse(content: Mapping[str, Any]) -> TrialConfig:
    """A checked `TrialConfig`.

    Raises:
        ConfigError: every mistake at once.
    """
    problems = problems_of(content)
    if problems:
        raise ConfigError(problems)
    return TrialConfig.model_validate(dict(content))


def _lora_problems(lora: Mapping[str, Any]) -> list[Problem]:
    extra = {name: value for name, value in lora.items() if name not in LoraSection.model_fields}
    start = extra.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_RANDOM_START):
        del extra["init_lora_weights"]
        rule = "pissa: a random start is another one when the adapter is loaded"
        problems = [Problem("lora.init_lora_weights", rule, repr(start), "pissa")]
        return [*problems, *_argument_problems("lora", extra, library_arguments.lora_arguments())]
    return _argument_problems("lora", extra, library_arguments.lora_arguments())


def _gaudi_config_problems(given: Mapping[str, Any]) -> list[Problem]:
    known = library_arguments.gaudi_config_keys()
    problems = []
    for name, value in given.items():
        key = f"gaudi_config.{name}"
        if name not in known:
            problems.append(unknown(key, tuple(known), "GaudiConfig key"))
        elif known[name] is bool and not isinstance(value, bool):
            problems.append(Problem(key, "true or false", repr(value)))
        elif known[name] is not bool and not _is_names(value):
            problems.append(Problem(key, "a list of operations, or null", repr(value)))
    return problems


def _is_names(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and all(isinstance(name, str) for name in value)
    )


def _objective_problems(content: Mapping[str, Any]) -> list[Problem]:
    objective = content.get("objective", objective_registry.PLAIN)
    if problems := objective_registry.problems_of(objective):
        return problems
    evaluation = content.get("evaluation")
    metrics = evaluation.get("metrics") if isinstance(evaluation, Mapping) else None
    own = [name for name in metrics if isinstance(name, str)] if isinstance(metrics, list) else []
    return [*agreement(content), *objective_registry.code_problems(objective, own)]


def agreement(content: Mapping[str, Any]) -> list[Problem]:
    """What an objective needs of the other sections and does not find there."""
    objective = content.get("objective", objective_registry.PLAIN)
    objective = {"name": objective} if isinstance(objective, str) else dict(objective)
    name = objective.pop("name", objective_registry.PLAIN)
    entry = objective_registry.entry_of(name)
    if name == objective_registry.PLAIN:
        return []
    data, lora, training = (
        section if isinstance(section := content.get(key), Mapping) else {}
        for key in ("data", "lora", "training")
    )
    problems = []
    if entry and entry.sides and data.get("forget_path") is None:
        problems.append(Problem("data.forget_path", f"what {name} is to forget", "null"))
    problems += _keep_problems(content, data)
    if entry and entry.reference:
        problems += _reference_problems(name, lora, training)
    if training.get("label_smoothing_factor"):
        got = repr(training["label_smoothing_factor"])
        problems.append(Problem("training.label_smoothing_factor", "0: only sft smooths", got))
    return problems


def _keep_problems(content: Mapping[str, Any], data: Mapping[str, Any]) -> list[Problem]:
    """The best of a model that is to forget can only be told by its trade-off."""
    evaluation = content.get("evaluation")
    metrics = evaluation.get("metrics") if isinstance(evaluation, Mapping) else None
    told = not isinstance(metrics, list) or objective_registry.TRADE_OFF in metrics
    if told or data.get("forget_path") is None or content.get("keep", "best") != "best":
        return []
    rule = f"last, or {objective_registry.TRADE_OFF} in evaluation.metrics: the best is told by it"
    return [Problem("keep", rule, "'best'")]


def _reference_problems(
    name: str, lora: Mapping[str, Any], training: Mapping[str, Any]
) -> list[Problem]:
    """What would keep the model with its adapter disabled from being the model before training."""
    why = f"{name} compares with the model whose adapter is disabled"
    problems = []
    if lora.get("r", 8) == 0:
        problems.append(Problem("lora.r", f"at least 1: {why}", "0"))
    if lora.get("bias", "none") != "none":
        problems.append(Problem("lora.bias", f"none: {why}", repr(lora["bias"])))
    start = lora.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_REBASING):
        rule = f"a start that leaves the base weights alone: {why}"
        problems.append(Problem("lora.init_lora_weights", rule, repr(start)))
    if training.get("use_hpu_graphs_for_training"):
        rule = f"false: {why}, and a recorded graph has it enabled"
        problems.append(Problem("training.use_hpu_graphs_for_training", rule, "true"))
    return problems


_RANDOM_START = "pissa_niter_"
"""Its approximate decomposition is drawn, and plain PEFT draws another as it loads the adapter."""

_REBASING = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to start an adapter that write into the base weights."""

_LOOSE: dict[str, Callable[[Mapping[str, Any]], list[Problem]]] = {
    "training": training_problems,
    "lora": _lora_problems,
    "gaudi_config": _gaudi_config_problems,
}


def _argument_problems(
    section: str, values: Mapping[str, Any], arguments: Mapping[str, library_arguments.Argument]
) -> list[Problem]:
    problems = []
    for name, value in values.items():
        key = f"{section}.{name}"
        if name not in arguments:
            known = [known for known in arguments if known not in OURS]
            problems.append(unknown(key, known, f"{section} argument"))
        elif refusal := arguments[name].refusal(value):
            near = nearest_choice(value, refusal)
            problems.append(Problem(key, f"expected {refusal}", repr(value), near))
    return problems


def _raise_first(problems: list[Problem]) -> None:
    if problems:
        raise ValueError("; ".join(str(problem) for problem in problems))
