"""Builds tokenizer, base model, tokens, adapter, trainer, optimizer and schedule of trials."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.checkpoint import checkpoint

from trial.config.errors import ConfigError, Problem
from trial.config.sections import TRAINING_DEFAULTS, DeepSpeedSection
from trial.config.trial_config import TrialConfig
from trial.devices.compat import text_attention_name
from trial.devices.device import DEVICES, Device
from trial.distributed import rank_env
from trial.model.dropout.lora_dropout import BatchPositions
from trial.model.eva import wants_eva
from trial.model.load import attach_adapter
from trial.model.router_loss import router_loss_factor
from trial.preflight.model_checks import MODEL_KEY, TARGETS_KEY, TOKENIZER_KEY
from trial.rehearsal.blame import problems_of_error
from trial.rehearsal.weightless import WeightlessCache, give_values
from trial.store.control import NullControl
from trial.store.folders import TrialFolder
from trial.store.phase_timer import PhaseTimer
from trial.training.attempt import build_trainer, restore_run_state
from trial.training.context import AttemptContext

PORTABLE = (
    "optim", "optim_args", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_ratio", "warmup_steps",
    "num_train_epochs", "max_steps",
)  # fmt: skip
"""Training arguments that mean the same on every device: of optimizer and schedule."""
MOST_STEPS = 2000
"""Steps at which a schedule is tried."""
NO_STRUCTURE = frozenset({"lora_alpha", "lora_dropout"})
"""Keys of `lora` that change numbers of an adapter and not what it consists of."""


class Rehearsal:
    """Rehearses trials, one after the other; what two of them share is built once."""

    def __init__(self, device: str) -> None:
        """Begin without anything built; `device` as in `Request`."""
        self.device: Device = DEVICES[device or "cpu"]
        self.builds_trainer = bool(device)
        self.cache = WeightlessCache()
        self._seen: dict[str, list[Problem]] = {}
        """Problems found, by step and the settings that it depends on."""

    def problems(self, configs: Iterable[TrialConfig]) -> list[Problem]:
        """Everything that keeps a worker from the first step of these trials; each problem once."""
        found: dict[Problem, None] = {}
        for config in configs:
            found |= dict.fromkeys(self._problems(config))
        return list(found)

    def _problems(self, config: TrialConfig) -> list[Problem]:
        model = config.model.model_dump_json()
        sources = [
            *self._once("tokenizer", model, config, self._tokenizer),
            *self._once("base", model, config, self._base),
        ]
        if sources:
            return sources
        lora = config.lora.model_dump_json(exclude=set(NO_STRUCTURE))
        training = config.model_dump_json(
            include={"training", "zero_stage", "deepspeed", "objective", "evaluation"}
        )
        parts = [
            *self._once("data", model + config.data.model_dump_json(), config, self._data),
            *self._once("adapter", model + lora, config, self._adapter),
        ]
        if parts:
            return parts
        key = f"{training} {model} {config.lora.r > 0}"
        if wants_eva(config):
            # The adapter's start is taken from the rows when the trainer is built.
            key += lora + config.data.model_dump_json()
        return self._once("trainer", key, config, self._trainer)

    def _once(
        self, step: str, key: str, config: TrialConfig, find: Callable[[TrialConfig], list[Problem]]
    ) -> list[Problem]:
        if (place := f"{step} {key}") not in self._seen:
            self._seen[place] = find(config)
        return self._seen[place]

    def _tokenizer(self, config: TrialConfig) -> list[Problem]:
        key = MODEL_KEY if config.model.tokenizer_name_or_path is None else TOKENIZER_KEY
        return _attempt(config, ("model",), self.cache.tokenizer, key)

    def _base(self, config: TrialConfig) -> list[Problem]:
        def take(trial: TrialConfig) -> object:
            return router_loss_factor(self._take_base(trial))

        return _attempt(config, ("model",), take, MODEL_KEY)

    def _take_base(self, config: TrialConfig) -> Any:
        return self.cache.take_base(config, self.device)

    def _data(self, config: TrialConfig) -> list[Problem]:
        def prepare(trial: TrialConfig) -> object:
            return self.cache.prepared(trial, self._take_base(trial))

        return _attempt(config, ("data",), prepare, "data.path")

    def _adapter(self, config: TrialConfig) -> list[Problem]:
        def attach(trial: TrialConfig) -> object:
            return attach_adapter(self._take_base(trial), trial, BatchPositions())

        return _attempt(config, ("lora",), attach, TARGETS_KEY)

    def _trainer(self, config: TrialConfig) -> list[Problem]:
        if not self.builds_trainer:
            config = _portable(config)
        return _attempt(config, ("training", "deepspeed"), self._build_trainer, "training")

    def _build_trainer(self, config: TrialConfig) -> None:
        """Build trainer, data loaders, optimizer and schedule, as before a first step."""
        with (
            tempfile.TemporaryDirectory() as folder,
            rank_env.rank_variables(deepspeed=config.zero_stage is not None),
        ):
            trial = TrialFolder.create(Path(folder, "trial"), config)
            context = AttemptContext(trial, config, NullControl(), self.cache, PhaseTimer())
            try:
                if config.zero_stage is not None:
                    rank_env.skip_deepspeed_shm_build(self.device.name)
                _, context.run = restore_run_state(context, self.device)
                context.trainer = build_trainer(context, self.device, context.run, None)
                make_ready(context.trainer)
            finally:
                rank_env.tear_down(context.trainer)


def make_ready(trainer: Any) -> None:
    """What the training loop of a `Trainer` does before its first step, as far as it can fail."""
    from transformers.integrations.deepspeed import deepspeed_init

    args = trainer.args
    attention = text_attention_name(trainer.model)
    if attention == "flex_attention" and args.device.type == "cpu":
        rule = "one that trains on a CPU: eager or sdpa"
        raise ConfigError([Problem("model.attn_implementation", rule, repr(attention))])
    loader = trainer.get_train_dataloader()
    batch = trainer.get_total_train_batch_size(args)
    steps = trainer.set_initial_training_values(args, loader, batch)[-1]
    give_values(trainer.model)
    if trainer.is_deepspeed_enabled:
        trainer.optimizer, trainer.lr_scheduler = deepspeed_init(trainer, num_training_steps=steps)
        try_deepspeed(trainer)
    trainer.create_optimizer_and_scheduler(num_training_steps=steps)
    try_schedule(trainer.lr_scheduler, steps)
    if args.torch_compile:
        torch.compile(torch.neg, backend=args.torch_compile_backend)
    if args.gradient_checkpointing:
        keywords = args.gradient_checkpointing_kwargs
        trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=keywords)
        # Unknown keywords are refused where a block is computed.
        block = torch.zeros(1, requires_grad=True)
        checkpoint(torch.neg, block, **{"use_reentrant": True, **(keywords or {})})


def try_deepspeed(trainer: Any) -> None:
    """Read the settings as DeepSpeed does, and make the optimizer that they name.

    Raises:
        Exception: of DeepSpeed, which names the setting.
        ConfigError: the settings want float16 where the device has none.
    """
    from deepspeed.runtime.config import DeepSpeedConfig

    settings = trainer.accelerator.state.deepspeed_plugin.hf_ds_config.config
    DeepSpeedConfig(settings)
    if (settings.get("fp16") or {}).get("enabled") is True and trainer.args.device.type == "cpu":
        raise ConfigError([Problem("deepspeed.config", "no fp16 on a CPU", "fp16.enabled: true")])
    for name, place in (settings.get("zero_optimization") or {}).items():
        if isinstance(place, dict) and place.get("device") == "nvme" and not place.get("nvme_path"):
            rule = f"an `nvme_path` in its `zero_optimization.{name}`"
            raise ConfigError([Problem("deepspeed.config", rule, "none")])
    section = settings.get("optimizer") or {}
    if parameters := section.get("params"):
        own = {"torch_adam", "adam_w_mode"}
        keywords = {name: value for name, value in parameters.items() if name not in own}
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)], **keywords)


def try_schedule(scheduler: Any, steps: int) -> None:
    """Compute the learning rate of the steps of a trial, the first and the last included.

    Args:
        scheduler: Of torch; it has made no step.
        steps: Optimizer steps of the trial; of more than `MOST_STEPS` some are left out.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        for loss in (1.0, 2.0, 2.0):
            scheduler.step(loss)
    stride = max(1, steps // MOST_STEPS)
    for rate in getattr(scheduler, "lr_lambdas", ()):
        for step in (*range(0, steps, stride), steps):
            if isinstance(factor := rate(step), complex) or not math.isfinite(factor):
                raise ValueError(f"the learning rate of step {step} would be {factor} of the first")


def _attempt(
    config: TrialConfig,
    sections: tuple[str, ...],
    step: Callable[[TrialConfig], object],
    otherwise: str,
) -> list[Problem]:
    """The problems of one step; `otherwise` is the key to name where no other is to blame."""
    try:
        step(config)
    except Exception as error:
        return problems_of_error(error, config, sections, step, otherwise)
    return []


def _portable(config: TrialConfig) -> TrialConfig:
    """The trial on a CPU, with the training arguments that mean the same there."""
    kept = {name: value for name, value in config.training.items() if name in PORTABLE}
    update: dict[str, Any] = {
        "training": {**TRAINING_DEFAULTS, **kept},
        "zero_stage": None,
        "deepspeed": DeepSpeedSection(),
        "device": "cpu",
    }
    return config.model_copy(update=update)
