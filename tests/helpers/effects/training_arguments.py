"""What each training argument does, as lists that a test measures and docs/effects.md shows."""

from __future__ import annotations

from typing import Any

from trial.config import config_rules, library_arguments
from trial.store.folders import TrialFolder

BASE = {"max_steps": 12, "eval_steps": 4, "learning_rate": 5e-3, "logging_steps": 1}
"""The training that every value is compared with: 8 rows a batch, 11 batches an epoch."""

ACTING: dict[str, dict[str, Any]] = {
    "adafactor": {"adafactor": True},
    "adam_beta1": {"adam_beta1": 0.5},
    "adam_beta2": {"adam_beta2": 0.8},
    "adam_epsilon": {"adam_epsilon": 1e-2},
    "bf16": {"bf16": True},
    "data_seed": {"data_seed": 5},
    "dataloader_drop_last": {"dataloader_drop_last": True},
    "gradient_accumulation_steps": {"gradient_accumulation_steps": 2},
    "group_by_length": {"group_by_length": True},
    "label_smoothing_factor": {"label_smoothing_factor": 0.2},
    "learning_rate": {"learning_rate": 1e-3},
    "loraplus_lr_ratio": {"loraplus_lr_ratio": 16},
    "lr_scheduler_kwargs": {"lr_scheduler_kwargs": {"num_cycles": 2.0}},
    "lr_scheduler_type": {"lr_scheduler_type": "constant"},
    "max_grad_norm": {"max_grad_norm": 0.01},
    "max_steps": {"max_steps": 11},
    "neftune_noise_alpha": {"neftune_noise_alpha": 5.0},
    "num_train_epochs": {"num_train_epochs": 0.5, "max_steps": -1},
    "optim": {"optim": "sgd"},
    "optim_args": {"optim": "stable_adamw", "optim_args": "clipping=0.1"},
    "optim_target_modules": {"optim": "galore_adamw", "optim_target_modules": ["q_proj"]},
    "per_device_train_batch_size": {"per_device_train_batch_size": 4},
    "seed": {"seed": 7},
    "warmup_ratio": {"warmup_ratio": 0.9},
    "warmup_steps": {"warmup_steps": 9},
    "weight_decay": {"weight_decay": 5.0},
}
"""Arguments that act on the training, each with another value (and what it needs beside it)."""

NEED_A_PACKAGE = {"optim_args": "torch-optimi", "optim_target_modules": "galore_torch"}
"""Of these, the ones whose optimizer is a package that the tests do not have."""

SAME: dict[str, dict[str, Any]] = {
    "average_tokens_across_devices": {"average_tokens_across_devices": False},
    "batch_eval_metrics": {"batch_eval_metrics": True, "include_for_metrics": ["loss"]},
    "dataloader_num_workers": {"dataloader_num_workers": 1},
    "dataloader_pin_memory": {"dataloader_pin_memory": False},
    "do_predict": {"do_predict": True},
    "do_train": {"do_train": True},
    "disable_tqdm": {"disable_tqdm": False},
    "eval_accumulation_steps": {"eval_accumulation_steps": 2},
    "eval_do_concat_batches": {"eval_do_concat_batches": False},
    "eval_on_start": {"eval_on_start": True},
    "full_determinism": {"full_determinism": False},
    "include_num_input_tokens_seen": {"include_num_input_tokens_seen": True},
    "include_tokens_per_second": {"include_tokens_per_second": False},
    "log_level": {"log_level": "error"},
    "logging_first_step": {"logging_first_step": True},
    "logging_nan_inf_filter": {"logging_nan_inf_filter": False},
    "per_device_eval_batch_size": {"per_device_eval_batch_size": 3},
    "prediction_loss_only": {"prediction_loss_only": True},
    "run_name": {"run_name": "another"},
    "save_safetensors": {"save_safetensors": True},
    "save_steps": {"save_steps": 5},
    "save_total_limit": {"save_total_limit": 1},
    "skip_memory_metrics": {"skip_memory_metrics": True},
    "torch_empty_cache_steps": {"torch_empty_cache_steps": 2},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "gradient_checkpointing_kwargs": {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
    },
}
"""Arguments without effect on the losses, each with another value: the test compares."""

WITHOUT_EFFECT: dict[str, str] = {
    **dict.fromkeys(
        ("eval_delay", "eval_steps", "eval_strategy"), "when a trial is evaluated"
    ),
    **dict.fromkeys(
        ("logging_steps", "logging_strategy", "log_level_replica", "log_on_each_node", "report_to"),
        "what is logged, and where",
    ),
    **dict.fromkeys(
        ("save_strategy", "save_on_each_node"), "checkpoints: a resumed trial has the same losses"
    ),
    **dict.fromkeys(
        ("include_for_metrics", "include_inputs_for_metrics", "use_legacy_prediction_loop",
         "eval_use_gather_object"),
        "the Trainer's own evaluation, which is not used",
    ),
    **dict.fromkeys(
        ("ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb", "ddp_find_unused_parameters",
         "ddp_timeout", "mp_parameters"),
        "how ranks talk",
    ),
    **dict.fromkeys(
        ("dataloader_persistent_workers", "dataloader_prefetch_factor"), "how rows are loaded"
    ),
    **dict.fromkeys(
        ("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel",
         "liger_kernel_config", "use_ipex", "tf32", "sdp_on_bf16"),
        "kernels: the same up to rounding",
    ),
    **dict.fromkeys(
        ("fp16", "fp16_backend", "fp16_opt_level", "half_precision_backend"),
        "float16, on CUDA alone",
    ),
    **dict.fromkeys(
        ("hub_always_push", "hub_model_id", "hub_private_repo", "hub_revision", "hub_strategy",
         "hub_token", "push_to_hub_model_id", "push_to_hub_organization", "push_to_hub_token"),
        "the hub, to which nothing is pushed",
    ),
    **dict.fromkeys(("tpu_metrics_debug", "tpu_num_cores", "debug"), "TPUs"),
    "do_eval": "a trial is always evaluated",
    "ray_scope": "the Trainer's own search, which is not used",
}  # fmt: skip
"""Arguments without effect on the losses that no test compares, and what they are about."""


def refused_arguments() -> set[str]:
    """Arguments that a new configuration may not set, or only to their defaults."""
    return {*config_rules.SET_BY_HARNESS, *config_rules.refused_training_arguments()}


def hpu_arguments() -> set[str]:
    """Arguments that only GaudiTrainingArguments has: they are about a Gaudi."""
    return set(library_arguments.gaudi_only_arguments()) - refused_arguments() - {*WITHOUT_EFFECT}


def losses(folder: TrialFolder) -> list[float]:
    """Eval losses after the first step, in nats per token."""
    return [row.eval_loss for row in folder.read_evaluations() if row.step]
