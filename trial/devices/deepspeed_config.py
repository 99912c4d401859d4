"""The DeepSpeed configuration of a trial, as a pure function of its own configuration.

The user's DeepSpeed file is kept except for what the trial decides: the stage (`zero_stage`), the
batch sizes and clipping, the learning rate's schedule, AdamW's hyperparameters and bfloat16. There
the trial's own keys win, so that a search over them has an effect.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from trial.config.errors import ConfigError, Problem
from trial.config.library_arguments import LORAPLUS_RATIO
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
SECTIONS = ("zero_optimization", "optimizer", "scheduler", "bf16", "fp16")
"""Keys of a DeepSpeed configuration whose values are JSON objects."""
HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay")
"""Parameters of an optimizer section that transformers fills in from the training arguments."""
OPTIMIZER: dict[str, Any] = {
    "type": "AdamW",
    "params": {
        **dict.fromkeys(HYPERPARAMETERS, AUTO),
        # torch's AdamW: DeepSpeed's own is compiled on first use, which takes minutes.
        "torch_adam": True,
    },
}
"""Section added with offload: without it the learning rate stays constant after a resume."""
ADAMW_ARGUMENTS = ("adamw_torch", "adamw_torch_fused")
"""Values of `training.optim` that an AdamW of DeepSpeed computes too."""


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


def section_problems(user: Mapping[str, Any]) -> list[Problem]:
    """Sections of the user's configuration that are no JSON objects."""
    return [
        Problem("deepspeed.config", f"a JSON object as its `{name}`", repr(user[name]))
        for name in SECTIONS
        if not isinstance(user.get(name, {}), Mapping | NoneType)
    ]


def deepspeed_config(
    config: TrialConfig, device: str, user: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """DeepSpeed's configuration for a trial; None when it trains without DeepSpeed.

    Args:
        config: The trial.
        device: `hpu`, `cuda` or `cpu`.
        user: `user_config(config.deepspeed.config)`; kept except for what the trial decides.

    Raises:
        ConfigError: the file trains by another optimizer than the trial names.
    """
    if config.zero_stage is None:
        return None
    merged = copy.deepcopy(dict(user or {}))
    if problems := optimizer_problems(config, merged):
        raise ConfigError(problems)
    merged.pop("scheduler", None)
    merged.update(dict.fromkeys(FROM_ARGUMENTS, AUTO))
    merged["zero_optimization"] = _zero(config, device, merged.get("zero_optimization") or {})
    merged["bf16"] = {**(merged.get("bf16") or {}), "enabled": wants_bf16(config)}
    merged.setdefault("steps_per_print", 10**9)
    own = merged.pop("optimizer", None) if _leaves_it_to_deepspeed(config) else None
    if own:
        parameters = {**(own.get("params") or {}), **dict.fromkeys(HYPERPARAMETERS, AUTO)}
        merged["optimizer"] = {**own, "params": parameters}
    elif _offloads(merged["zero_optimization"], "offload_optimizer"):
        merged["optimizer"] = copy.deepcopy(OPTIMIZER)
        # Without this DeepSpeed refuses an optimizer of another library together with offload.
        merged.setdefault("zero_force_ds_cpu_optimizer", False)
    else:
        merged.pop("optimizer", None)
    return merged


def replaced_parts(config: TrialConfig, user: Mapping[str, Any]) -> list[str]:
    """Dotted keys of the user's configuration whose values the trial's own keys replace."""
    found = ["scheduler"] if user.get("scheduler") else []
    section = user.get("optimizer") or {}
    parameters = section.get("params") or {}
    if section and not _leaves_it_to_deepspeed(config):
        return [*found, "optimizer"]
    found += [
        f"optimizer.params.{name}" for name in HYPERPARAMETERS if parameters.get(name, AUTO) != AUTO
    ]
    enabled = (user.get("bf16") or {}).get("enabled", AUTO)
    return [*found, *(["bf16.enabled"] if enabled not in (AUTO, wants_bf16(config)) else [])]


def optimizer_problems(config: TrialConfig, user: Mapping[str, Any]) -> list[Problem]:
    """Where DeepSpeed would train by another optimizer than `training.optim` names.

    An AdamW in the user's configuration is one of the ways to compute `adamw_torch`. Optimizer
    states on the host need DeepSpeed's own AdamW.
    """
    if config.zero_stage is None:
        return []
    if problems := section_problems(user):
        return problems
    section = user.get("optimizer") or {}
    name, optim = str(section.get("type", "")), str(config.training["optim"])
    if section and _leaves_it_to_deepspeed(config) and not _is_adamw(section):
        rule = (
            "an optimizer of type AdamW, or none: the optimizer is `training.optim`, its "
            "hyperparameters are keys of `training`"
        )
        problems.append(Problem("deepspeed.config", rule, f"optimizer.type {name!r}"))
    zero = _zero(config, "cpu", user.get("zero_optimization") or {})
    offloads = _offloads(zero, "offload_optimizer")
    if offloads and _loraplus(config) is not None:
        rule = "null where optimizer states are offloaded: DeepSpeed's AdamW has one rate"
        problems.append(Problem(f"training.{LORAPLUS_RATIO}", rule, repr(_loraplus(config))))
    if offloads and optim not in ADAMW_ARGUMENTS:
        rule = f"{' or '.join(ADAMW_ARGUMENTS)} where optimizer states are offloaded"
        problems.append(Problem("training.optim", rule, repr(optim), ADAMW_ARGUMENTS[0]))
    return problems


def _leaves_it_to_deepspeed(config: TrialConfig) -> bool:
    """Whether an AdamW of DeepSpeed can stand for the trial's optimizer."""
    return config.training["optim"] in ADAMW_ARGUMENTS and _loraplus(config) is None


def _loraplus(config: TrialConfig) -> float | None:
    return config.training.get(LORAPLUS_RATIO)


def _is_adamw(section: Mapping[str, Any]) -> bool:
    """Whether an optimizer section means AdamW; DeepSpeed's `Adam` does unless told otherwise."""
    name = str(section.get("type", "")).lower()
    parameters = section.get("params") or {}
    return name == "adamw" or (name == "adam" and bool(parameters.get("adam_w_mode", True)))


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
