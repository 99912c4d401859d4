"""Which trials may share a packed job, as a pure function of their configurations. Torch-free.

The trials of a packed job train in one process. They may differ in rank, scale, dropout, learning
rate, schedule, seed, steps and the like, and must agree in everything else.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from trial.config.library_arguments import LORAPLUS_RATIO
from trial.config.sections import TRAINING_DEFAULTS
from trial.config.trial_config import TrialConfig

RANK_BUCKETS = (16, 64, 128, 256, 512)
"""Adapters are padded with zeros to the next of these ranks; a job's trials share one bucket."""

VARIED = frozenset(
    {
        "seed",
        "data_seed",
        "learning_rate",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "max_grad_norm",
        "lr_scheduler_type",
        "lr_scheduler_kwargs",
        "warmup_ratio",
        "warmup_steps",
        "num_train_epochs",
        "max_steps",
        "gradient_accumulation_steps",
        "eval_steps",
        "eval_delay",
        "eval_on_start",
        "logging_steps",
        "logging_first_step",
        "save_steps",
        "report_to",
        "run_name",
        LORAPLUS_RATIO,
    }
)
"""Training arguments in which trials of one job may differ."""

SHARED = frozenset({"per_device_train_batch_size", "per_device_eval_batch_size", "bf16"})
"""Training arguments in which the trials of one job must agree."""

FIXED: dict[str, Any] = {
    name: TRAINING_DEFAULTS[name] for name in ("eval_strategy", "save_strategy", "optim")
}
"""Training arguments that must have this value in a packed job."""

_LORA = frozenset(
    {"r", "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "bias", "target_modules"}
    | {"init_lora_weights", "rank_pattern", "alpha_pattern"}
)
"""Keys of `lora` that packed jobs know."""
_ADAPTIVE = frozenset({"reduce_lr_on_plateau", "greedy"})
"""Learning-rate schedules that depend on more than the step."""


def bucket(rank: int) -> int:
    """The rank that an adapter of `rank` is padded to; above all buckets `rank` itself."""
    return next((size for size in RANK_BUCKETS if rank <= size), rank)


def padded_rank(config: TrialConfig) -> int:
    """The rank that the adapter's matrices are padded to in a job."""
    pattern = (config.lora.model_extra or {}).get("rank_pattern") or {}
    return bucket(max([config.lora.r, *pattern.values()]))


def unpackable_reason(config: TrialConfig) -> str:
    """Why the trial cannot share a packed job, for a log; empty when it can."""
    lora, extra = config.lora, config.lora.model_extra or {}
    if not lora.r:
        return "the whole model is trained"
    has_metrics = config.evaluation.metrics or config.data.forget_path is not None
    if not config.objective.is_plain or has_metrics:
        return "packed jobs know the plain objective and the eval loss"
    if config.zero_stage is not None:
        return "DeepSpeed trains one model at a time"
    if (
        lora.use_dora
        or lora.bias != "none"
        or not isinstance(extra.get("init_lora_weights", True), bool)
    ):
        return "only plain LoRA can be packed"
    if unknown := sorted(set(extra) - _LORA):
        return f"lora.{unknown[0]} is not known to packed jobs"
    known = VARIED | SHARED | FIXED.keys()
    if unknown := sorted(set(config.training) - known):
        return f"training.{unknown[0]} is not known to packed jobs"
    for name, value in FIXED.items():
        if config.training[name] != value:
            return f"training.{name} is not {value!r}"
    if config.training["lr_scheduler_type"] in _ADAPTIVE:
        return "its schedule follows the eval loss"
    return ""


def packing_key(config: TrialConfig) -> str | None:
    """A hash: trials with equal ones may share a packed job. None if the trial must train alone."""
    if not config.packed or unpackable_reason(config):
        return None
    lora = config.lora
    content = {
        "model": config.model.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json"),
        "device": config.device,
        "targets": lora.target_modules,
        "rank": padded_rank(config),
        "training": {name: config.training.get(name) for name in sorted(SHARED)},
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
