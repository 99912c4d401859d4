"""The sections of a trial's configuration as frozen pydantic models, one class each.

Keys under `lora` are PEFT `LoraConfig` names, verbatim. Torch-free.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from trial.config import objective_registry
from trial.config.errors import across, raise_as_value_error

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
"""Values of `training` keys that a configuration leaves out."""


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
    """Type of the base weights. What is trained is held in float32: adapters, `modules_to_save`,
    for `r: 0` every weight (16 bytes each with gradient and AdamW)."""
    attn_implementation: str | None = None
    """`eager`, `sdpa`, `gaudi_fused_sdpa`, ...; the model's own default when null."""
    tokenizer_name_or_path: str | None = None
    """Where the tokenizer is, when not beside the model."""
    trust_remote_code: bool = False
    """Run Python files that come with the model. Off by default; a warning is printed when on."""


class DataConfig(Section):
    """Question and answer, prompt and completion, or chat rows; `eval` is always held out."""

    path: str = "builtin:python-docs"
    """`builtin:python-docs`, a CSV, JSON, JSONL, Parquet or text file (also `.gz`, `.bz2`, `.xz`,
    `.zst`, `.zip`), a saved dataset, or a hub id."""
    name: str | None = None
    """Configuration name of a hub dataset."""
    split: str = "train"
    """Split of a hub or saved dataset to draw from."""
    format: Literal["auto", "csv", "json", "jsonl", "parquet", "text", "dataset"] = "auto"
    """How to read `path`; `auto` goes by the file's extension."""
    delimiter: str | None = None
    """CSV delimiter; sniffed when null."""
    prompt_column: str | None = None
    """Column of the prompt; a known name when null (docs/data.md); empty for rows of text alone."""
    completion_column: str | None = None
    """Column of the completion; a known name when null."""
    messages_column: str | None = None
    """Column of chat messages (`role`, `content`); a known name when null."""
    system_column: str | None = None
    """Column of the system message; a known name when null, none when empty."""
    context_column: str | None = None
    """Column of what the prompt is about, added to it after a blank line; a known name when null,
    none when empty."""
    history_column: str | None = None
    """Column of the turns before the prompt, as pairs; `history` when null and it holds such, none
    when empty."""
    prompt_format: str = "auto"
    """A family of prompt tags (`llama2`, `phi`, ...), `chat_template`, `plain`, or `auto`."""
    chat_template: str | None = None
    """A prompt format of your own: a file with a Jinja chat template as transformers takes it, or
    the template's text; the tokenizer's own when null."""
    train_on: Literal["all", "last"] = "all"
    """Which answers of a conversation count in the loss: all of them, or the last one."""
    tokenize: Literal["together", "apart"] = "together"
    """Prompt and answer as one text, or each by itself: `apart` reads and tokenizes as versions
    before this key did, for studies made with them."""
    max_length: int = Field(default=512, ge=8)
    """Most tokens of a row; longer rows are cut. On hpu every row is padded to it."""
    eval_path: str | None = None
    """A held-out file of its own instead of a split by seed."""
    eval_split: str | None = None
    """A held-out split of its own instead of a split by seed."""
    eval_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows held out, when there is no eval set of its own."""
    split_seed: int = Field(default=0, ge=0)
    """Seed of the held-out split; not `training.seed`, so that all seeds share one eval set."""
    max_train_samples: int | None = Field(default=None, ge=1)
    """Most rows to train on."""
    max_eval_samples: int | None = Field(default=None, ge=1)
    """Most rows to evaluate on."""
    forget_path: str | None = None
    """Rows to be forgotten, read as `path` is; `path` then holds the rows to be retained, without
    those that ask the same question."""
    forget_name: str | None = None
    """Configuration name of the hub dataset at `forget_path`; `name` when null."""
    forget_split: str = "train"
    """Split of the dataset at `forget_path`."""
    max_forget_samples: int | None = Field(default=None, ge=1)
    """Most rows to forget."""
    alternatives: str | tuple[str, ...] | None = None
    """Answers in place of the forgotten ones (idk, dpo): texts, or a file with one a line; a few
    refusals when null."""
    alternative_column: str | None = None
    """Column of the forget set with another answer for each row, instead of `alternatives`."""

    @model_validator(mode="after")
    def _apart_is_for_last(self) -> DataConfig:
        if self.tokenize == "apart" and self.train_on != "last":
            raise across("train_on", "last, the only one of `tokenize: apart`", self.train_on)
        return self

    @model_validator(mode="after")
    def _one_format(self) -> DataConfig:
        if self.chat_template is not None and self.prompt_format not in ("auto", "chat_template"):
            rule = "chat_template or auto, beside `data.chat_template`"
            raise across("prompt_format", rule, self.prompt_format)
        return self

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
    """DeepSpeed settings besides `zero_stage`."""

    config: str | dict[str, Any] | None = None
    """The user's own `ds_config.json`: a path or the mapping itself. The trial's own keys win over
    its stage, batch sizes, scheduler, bf16 and AdamW's hyperparameters; another optimizer than
    `training.optim` is refused."""
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
        raise_as_value_error(objective_registry.problems_of(content))
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
    """When a trial is evaluated, and which metrics it reports besides the eval loss.

    The built-in metrics need a forget set.
    """

    steps: list[int] | None = None
    """Evaluate after these optimizer steps and after the last one, and at no other; null goes by
    `training.eval_steps`."""
    metrics: list[str] | None = None
    """Names of metrics (docs/objectives.md), or your own `package.module:function`; null takes
    every metric that the data allow."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Tokens generated for each ROUGE-L answer."""
    generate_rows: int = Field(default=16, ge=1)
    """Rows of each set for which answers are generated, for ROUGE-L."""
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
        raise_as_value_error(objective_registry.metric_problems(metrics or []))
        return metrics


class Origin(Section):
    """How a trial came about; without effect on training."""

    study: str
    number: int = Field(ge=0)
    params: dict[str, Any] = Field(default_factory=dict)
    """The sampler's parameters, by dotted path."""
    confirms: int | None = None
    """Number of the trial that this one repeats with another seed."""
    continues: int | None = None
    """Number of the finished trial that this one trains for longer."""
    changes: list[str] = Field(default_factory=list)
    """Changes by the harness, as sentences: after a failure, or when a trial was copied."""

    @property
    def searched(self) -> bool:
        """Whether the trial is part of the search; false when it confirms or continues another."""
        return self.confirms is None and self.continues is None
