"""The trainer's arguments of one trial, from its configuration and its device."""

from __future__ import annotations

import logging
from typing import Any

from trial.config.trial_config import TrialConfig
from trial.devices import deepspeed_config
from trial.devices.device import Device
from trial.store.folders import TrialFolder

FIXED: dict[str, Any] = {
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "do_eval": True,
}
DEFAULTS: dict[str, Any] = {
    "disable_tqdm": True,
    "skip_memory_metrics": True,
    # The re-entrant kind loses gradients behind a frozen embedding.
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}
"""Used unless the trial says otherwise."""
logger = logging.getLogger(__name__)


def saves_with_each_evaluation(config: TrialConfig) -> bool:
    """Whether checkpoints go with evaluations: unless `save_steps` or a strategy says when."""
    strategy = config.training.get("save_strategy", "steps")
    return strategy == "best" or (strategy == "steps" and "save_steps" not in config.training)


def training_keywords(
    config: TrialConfig, device: Device, folder: TrialFolder, *, resumed: bool = False
) -> dict[str, Any]:
    """Keyword arguments of the device's arguments class."""
    ignored = sorted(device.ignored_arguments() & set(config.training))
    if ignored:
        logger.warning("no effect on %s: %s", device.name, ", ".join(ignored))
    own = {name: value for name, value in config.training.items() if name not in ignored}
    keywords = {**DEFAULTS, **own, **FIXED, **device.arguments(config)}
    keywords["output_dir"] = str(folder.checkpoints)
    keywords["logging_dir"] = str(folder.path / "logs")
    if config.origin:
        keywords.setdefault("run_name", f"{config.origin.study}/{config.origin.number}")
    if saves_with_each_evaluation(config):
        keywords["save_strategy"] = "no"
    if resumed:
        # The untrained model was evaluated by the first attempt.
        keywords["eval_on_start"] = False
    user = deepspeed_config.user_config(config.deepspeed.config)
    if (deepspeed := deepspeed_config.deepspeed_config(config, device.name, user)) is not None:
        keywords["deepspeed"] = deepspeed
    return keywords


def tracker_labels(config: TrialConfig) -> dict[str, Any]:
    """What experiment trackers are told beside the trainer's own arguments."""
    named = {f"lora.{name}": value for name, value in config.lora.model_dump().items()}
    if config.origin:
        named |= {"study": config.origin.study, "trial": config.origin.number}
        named |= {f"drawn.{name}": value for name, value in config.origin.params.items()}
    return {**named, "zero_stage": config.zero_stage, "model": config.model.name_or_path}


def build_arguments(keywords: dict[str, Any], device: Device, told: dict[str, Any]) -> Any:
    """The device's training arguments; sets the process up for them (accelerate, DeepSpeed).

    `told` goes to the trackers of `report_to` with the arguments themselves.
    """
    base = device.arguments_class()
    own = {"to_dict": lambda self: {**base.to_dict(self), **told}}
    arguments = type(base.__name__, (base,), own)(**keywords)
    if device.name == "cuda" and arguments.n_gpu > 1:
        # transformers would wrap the model in DataParallel and multiply the batch size.
        arguments._n_gpu = 1
    return arguments
