"""What each file of a study or a trial holds, as pydantic records."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict

State = Literal["complete", "pruned", "failed", "duplicate"]
"""`duplicate`: not trained, since another trial has the same configuration."""
CauseKind = Literal["diverged", "out_of_memory", "lost", "device_busy", "hung", "error"]
"""`lost`: the worker or its node has ended; `hung`: it made no progress for too long."""

Measured = Annotated[float, Strict()]
"""A number that was measured: in a file, a text is none, whatever its digits say."""


class Record(BaseModel):
    """A record on disk. Fields of later versions are ignored; a missing field is an error.

    A field with an alias has that name on disk, and its own name in code.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        allow_inf_nan=True,
        ser_json_inf_nan="constants",
        validate_by_name=True,
        serialize_by_alias=True,
    )


class Evaluation(Record):
    """One evaluation on the held-out set: a line of `metrics.jsonl`."""

    kind: Literal["eval"] = "eval"
    step: int
    """Optimizer steps done."""
    eval_loss: Measured
    """Cross-entropy in nats per completion token over the whole eval set."""
    eval_loss_per_byte: Measured | None = None
    """The same sum of nats per UTF-8 byte of the text that counts, special tokens left out."""
    eval_hash: str = ""
    """As in `DataSummary`; empty in lines of earlier versions."""
    eval_text_hash: str = ""
    metrics: dict[str, Measured] = Field(default_factory=dict)
    """Further metrics by name."""
    epoch: float = 0.0
    tokens: int = 0
    """Training tokens seen, padding left out."""
    train_seconds: float = 0.0
    """Seconds spent in training steps so far, evaluation left out."""
    time: float = Field(default_factory=time.time)
    """Seconds since 1970."""


class TrainLog(Record):
    """One training log entry: a line of `metrics.jsonl`."""

    kind: Literal["train"] = "train"
    step: int
    loss: Measured
    """The trainer's own logged loss. Not comparable with `eval_loss`."""
    learning_rate: float | None = None
    grad_norm: Measured | None = None
    time: float = Field(default_factory=time.time)


class Attempt(Record):
    """One start of a trial: a line of `attempts.jsonl`. A resumed trial has several."""

    started: float
    host: str
    pid: int
    device: str
    """The device, for example `cpu`, `cuda NVIDIA H100`, `hpu GAUDI2`, `hpu stand-in`."""
    devices: int = 1
    """Number of ranks, one device each."""
    resumed_from: int = 0
    """Optimizer step of the checkpoint it went on from; 0 for a fresh start."""
    versions: dict[str, str] = Field(default_factory=dict)
    cold: bool = True
    """Whether the process was new, so that it had to import the libraries and load the model."""
    slots: int = 1
    """Trials that the job can train at once; a trial's seconds are its share of the job's."""
    damaged: tuple[str, ...] = ()
    """What was wrong with newer checkpoints, from which it therefore did not go on, or with its
    metrics."""


class Cause(Record):
    """Why a trial did not complete."""

    kind: CauseKind
    message: str
    """First line of the error, for a person to read."""
    step: int | None = None


class Seconds(Record):
    """Wall seconds of a trial by phase, summed over its attempts."""

    startup: float = 0.0
    """Imports and device start, counted for a worker's first trial only."""
    load: float = 0.0
    """Loading of the base model, the tokenizer and the data."""
    first_step: float = 0.0
    """The first optimizer step of each attempt: graph compilation, where there is any."""
    train: float = 0.0
    """All later optimizer steps."""
    eval: float = 0.0
    save: float = 0.0

    @property
    def total(self) -> float:
        """Sum of the phases."""
        return sum(getattr(self, name) for name in type(self).model_fields)


class DataSummary(Record):
    """What became of a trial's data: how many rows, how they were cut, what counts in the loss."""

    train_rows: int
    eval_rows: int
    skipped: int = 0
    """Records left out because their prompt or completion is empty, or no answer counts."""
    overlapping: int = 0
    """Training rows left out because a separate eval set has the same prompt."""
    duplicates: int = 0
    """Rows equal to an earlier row of the same set; they are trained on, or evaluated, again."""
    duplicates_across: int = 0
    """Eval rows that are in the training set too, but for case and white space."""
    truncated: int = 0
    """Rows of both sets longer than `max_length`."""
    answers_cut: int = 0
    """Rows of both sets that lost tokens which would have counted in the loss."""
    used_columns: tuple[str, ...] = ()
    unused_columns: tuple[str, ...] = ()
    """Columns of the files that no row is made of; `messages.id` is a key of messages."""
    prompt_format: str = ""
    """The format used, never `auto`."""
    chat_template: str = ""
    """Name of the file `data.chat_template`; empty for the tokenizer's own template."""
    chat_template_hash: str = ""
    """The first 12 hexadecimal digits of that template's SHA-256."""
    train_on: str = ""
    """`data.train_on`."""
    tokenize: str = ""
    """`data.tokenize`."""
    train_tokens: int = 0
    """Tokens of the training set that count in the loss."""
    eval_tokens: int = 0
    """Tokens of the eval set that count in the eval loss."""
    eval_bytes: int = 0
    """UTF-8 bytes of the text that the eval loss counts, special tokens left out."""
    date: str = ""
    """The date (ISO 8601) that the chat template got as today's; empty if it asks for none."""
    data_hash: str = ""
    """Equal hashes mean the same tokens and labels in all sets."""
    eval_hash: str = ""
    """Equal hashes mean the same tokens and labels in what is evaluated: the eval set, and what
    unlearning measures. Equal numbers of two tokenizers are equal only where their words are."""
    eval_text_hash: str = ""
    """Equal hashes mean the same text in what the eval loss counts, whatever the tokenizer."""

    @property
    def format_words(self) -> str:
        """The prompt format, with the name of the user's own template."""
        return f"{self.prompt_format} {self.chat_template}".strip()

    @property
    def tokens_per_byte(self) -> float | None:
        """An eval loss in nats per token times this is one per byte; None without bytes."""
        return self.eval_tokens / self.eval_bytes if self.eval_bytes else None


class Result(Record):
    """How a trial ended: `result.json`, written last and once.

    `trial.store.metrics.of_result` reads the sweep's objective from a result.
    """

    version: Literal[1] = 1
    state: State
    eval_loss: Measured | None = Field(default=None, alias="value")
    """Eval loss of the saved adapter (see `keep`), or the last eval loss of a pruned trial."""
    best_step: int | None = None
    steps: int = 0
    """Optimizer steps done."""
    max_steps: int = 0
    """Optimizer steps planned."""
    initial_eval_loss: Measured | None = None
    """Eval loss before the first step, when `training.eval_on_start` is set."""
    metrics: dict[str, Measured] = Field(default_factory=dict)
    """Metrics of the evaluation that gave `value`, and counters of the device, by name."""
    tokens: int = 0
    """Training tokens seen, padding left out."""
    trainable_parameters: int = 0
    total_parameters: int = 0
    peak_memory_bytes: int = 0
    """Peak memory of the device; on a CPU the peak resident memory of the process."""
    seconds: Seconds = Seconds()
    device: str = ""
    devices: int = 1
    data_hash: str = ""
    data: DataSummary | None = None
    """What became of the data; absent where a trial ended before they were read."""
    model_hash: str = ""
    cause: Cause | None = None
    duplicate_of: int | None = None
    """Number of the trial with the same configuration, for a `duplicate`."""
    finished: float = Field(default_factory=time.time)


class StudyRecord(Record):
    """What a study is: `study.json`."""

    version: Literal[1] = 1
    name: str
    created: float = Field(default_factory=time.time)
    spec: dict[str, Any]
    """The resolved sweep file."""
    source: str = ""
    """Path of the sweep file."""
    provenance: dict[str, Any] = Field(default_factory=dict)
    """Versions, git commit, host."""
    defaults: Literal[2] = 2
    """Which defaults stand for keys that `spec` leaves out; a record without it has the first ones
    (`trial.config.earlier`)."""
