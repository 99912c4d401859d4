"""The training arguments of one trial, from its configuration and its device."""

from __future__ import annotations

import logging
from typing import Any

from trial.config import library_arguments
from trial.config.trial_config import TrialConfig
from trial.devices import compat, deepspeed_config
from trial.devices.device import Device
from trial.store.folders import TrialFolder

REQUIRED: dict[str, Any] = {
    "remove_unused_columns": False,
    "label_names": ["labels"],
    "do_eval": True,
    # Exact resumption needs the optimizer's state.
    "save_only_model": False,
}
"""Used whatever the trial's configuration says."""
DEFAULTS: dict[str, Any] = {
    "disable_tqdm": True,
    "skip_memory_metrics": True,
    # Re-entrant checkpointing loses gradients behind a frozen embedding.
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
}
"""Used unless the trial's configuration sets them."""
logger = logging.getLogger(__name__)


def saves_with_each_evaluation(config: TrialConfig) -> bool:
    """Whether each evaluation is followed by a checkpoint.

    So with `save_strategy: best`, and with `steps` (the default) if `save_steps` is not set.
    """
    strategy = config.training.get("save_strategy", "steps")
    return strategy == "best" or (strategy == "steps" and "save_steps" not in config.training)


def training_keywords(
    config: TrialConfig, device: Device, folder: TrialFolder, *, resumed: bool = False
) -> dict[str, Any]:
    """Keyword arguments of the device's `TrainingArguments` class.

    `resumed`: the trial goes on from a checkpoint.
    """
    ignored = sorted(device.ignored_arguments() & set(config.training))
    if ignored:
        logger.warning("no effect on %s: %s", device.name, ", ".join(ignored))
    left_out = {*ignored, *library_arguments.optimizer_arguments()}
    configured = {name: value for name, value in config.training.items() if name not in left_out}
    keywords = {**DEFAULTS, **configured, **REQUIRED, **device.arguments(config)}
    keywords["output_dir"] = str(folder.checkpoints)
    keywords["logging_dir"] = str(folder.path / "logs")
    keywords["run_name"] = _run_name(config, folder)
    if saves_with_each_evaluation(config):
        keywords["save_strategy"] = "no"
    if resumed:
        # The first attempt has evaluated the untrained model.
        keywords["eval_on_start"] = False
    user = deepspeed_config.user_config(config.deepspeed.config)
    if (deepspeed := deepspeed_config.deepspeed_config(config, device.name, user)) is not None:
        keywords["deepspeed"] = deepspeed
        # transformers wants both to say the same; a bfloat16 base implies it for DeepSpeed.
        keywords["bf16"] = deepspeed["bf16"]["enabled"]
        if replaced := deepspeed_config.replaced_parts(config, user):
            logger.warning("the trial's own keys replace of deepspeed.config: %s", replaced)
    return keywords


def _run_name(config: TrialConfig, folder: TrialFolder) -> str:
    """The name of the trial's runs with its trackers; each trial of a study has its own."""
    given = config.training.get("run_name")
    if config.origin is None:
        return given or folder.path.name
    return f"{given or config.origin.study}/{config.origin.number}"


def loraplus_ratio(config: TrialConfig) -> float | None:
    """The rate of every B over that of every A; None where all have one rate."""
    return config.training.get(library_arguments.LORAPLUS_RATIO)


def tracker_labels(config: TrialConfig) -> dict[str, Any]:
    """What goes to experiment trackers (`report_to`) beside the trainer's own arguments."""
    labels = {f"lora.{name}": value for name, value in config.lora.model_dump().items()}
    if config.origin:
        labels |= {"study": config.origin.study, "trial": config.origin.number}
        labels |= {f"drawn.{name}": value for name, value in config.origin.params.items()}
    if (ratio := loraplus_ratio(config)) is not None:
        labels[library_arguments.LORAPLUS_RATIO] = ratio
    return {**labels, "zero_stage": config.zero_stage, "model": config.model.name_or_path}


def build_arguments(keywords: dict[str, Any], device: Device, labels: dict[str, Any]) -> Any:
    """The device's `TrainingArguments`; creating them initialises accelerate and DeepSpeed.

    `labels` goes to experiment trackers together with the arguments.
    """
    base = device.arguments_class()
    overrides = {"to_dict": lambda self: {**base.to_dict(self), **labels}}
    arguments = type(base.__name__, (base,), overrides)(**keywords)
    if device.name == "cuda":
        compat.use_one_gpu(arguments)
    return arguments
