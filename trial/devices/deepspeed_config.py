"""The DeepSpeed configuration of a trial, as a pure function of its own configuration.

The user's DeepSpeed file is kept except for what the trial decides: the stage (`zero_stage` wins,
so that a search over it is effective) and the batch sizes ("auto", so that DeepSpeed accumulates
gradients as the training arguments say).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trial.config.trial_config import TrialConfig

AUTO = "auto"
FROM_ARGUMENTS = (
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "train_batch_size",
    "gradient_clipping",
)
"""Keys that transformers fills in from the training arguments."""
HPU_STAGES: dict[int, dict[str, bool]] = {
    2: {"overlap_comm": False, "contiguous_gradients": False, "reduce_scatter": False},
    3: {"overlap_comm": False, "contiguous_gradients": False},
}
"""Values that Gaudi's documentation asks for, by stage; the user's own win."""
OFFLOADS = {"offload_optimizer": 1, "offload_param": 3}
"""The lowest stage of each kind of offload; below it the setting has no effect."""
OPTIMIZER: dict[str, Any] = {
    "type": "AdamW",
    "params": {
        **dict.fromkeys(("lr", "betas", "eps", "weight_decay"), AUTO),
        # torch's AdamW: DeepSpeed's own is compiled on first use, which takes minutes.
        "torch_adam": True,
    },
}
"""Section added with offload: without it the learning rate stays constant after a resume."""


def user_config(config: str | Mapping[str, Any] | None) -> dict[str, Any]:
    """The user's own DeepSpeed configuration as a mapping.

    Raises:
        ValueError: the file cannot be read as a JSON object.
    """
    if config is None or isinstance(config, Mapping):
        return copy.deepcopy(dict(config or {}))
    try:
        content = json.loads(Path(config).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"deepspeed.config: {config} is not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"deepspeed.config: {config} must hold a JSON object")
    return content


def deepspeed_config(
    config: TrialConfig, device: str, user: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """DeepSpeed's configuration for a trial; None when it trains without DeepSpeed.

    Args:
        config: The trial.
        device: `hpu`, `cuda` or `cpu`.
        user: `user_config(config.deepspeed.config)`; kept except for what the trial decides.
    """
    if config.zero_stage is None:
        return None
    merged = copy.deepcopy(dict(user or {}))
    merged.update(dict.fromkeys(FROM_ARGUMENTS, AUTO))
    merged["zero_optimization"] = _zero(config, device, merged.get("zero_optimization") or {})
    merged.setdefault("bf16", {"enabled": wants_bf16(config)})
    merged.setdefault("steps_per_print", 10**9)
    if _offloads(merged["zero_optimization"], "offload_optimizer"):
        merged.setdefault("optimizer", copy.deepcopy(OPTIMIZER))
        # Without this DeepSpeed refuses an optimizer of another library together with offload.
        merged.setdefault("zero_force_ds_cpu_optimizer", False)
    return merged


def wants_bf16(config: TrialConfig) -> bool:
    """Whether DeepSpeed computes in bfloat16: `training.bf16`, or base weights of that type."""
    return bool(config.training.get("bf16")) or config.model.dtype == "bfloat16"


def _zero(config: TrialConfig, device: str, user: Mapping[str, Any]) -> dict[str, Any]:
    stage = config.zero_stage or 0
    defaults: dict[str, Any] = dict(HPU_STAGES.get(stage, {})) if device == "hpu" else {}
    if stage == 3:
        defaults["stage3_gather_16bit_weights_on_model_save"] = True
    zero = {**defaults, **user, "stage": stage}
    for key, lowest in OFFLOADS.items():
        wanted = getattr(config.deepspeed, key)
        if wanted != "none" and stage >= lowest:
            zero[key] = {"pin_memory": device != "cpu", **(zero.get(key) or {}), "device": wanted}
    return zero


def _offloads(zero: Mapping[str, Any], key: str) -> bool:
    return (zero.get(key) or {}).get("device", "none") != "none"
