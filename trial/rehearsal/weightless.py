"""A process cache whose base models have names and shapes, and no values."""

from __future__ import annotations

import copy
from typing import Any

import torch

from trial.config.sections import ModelConfig
from trial.config.trial_config import TrialConfig
from trial.data.prepare import PreparedData
from trial.devices.device import Device
from trial.model.load import load_base
from trial.training.process_cache import ProcessCache


class WeightlessCache(ProcessCache):
    """Base models on the meta device, tokenizers and tokens, each built once for many trials."""

    def __init__(self) -> None:
        super().__init__(lambda device: 0.0)
        self._bases: dict[str, Any] = {}
        self._all_tokenizers: dict[str, Any] = {}
        self._all_prepared: dict[str, PreparedData] = {}

    def tokenizer(self, config: TrialConfig) -> Any:
        """See `ProcessCache`."""
        key = config.model.model_dump_json()
        if key not in self._all_tokenizers:
            self._all_tokenizers[key] = super().tokenizer(config)
        return self._all_tokenizers[key]

    def prepared(self, config: TrialConfig, base: Any) -> PreparedData:
        """See `ProcessCache`."""
        key = config.model.model_dump_json() + config.data.model_dump_json()
        if key not in self._all_prepared:
            self._all_prepared[key] = super().prepared(config, base)
        return self._all_prepared[key]

    def take_base(self, config: TrialConfig, device: Device) -> Any:
        """A base model of the caller's own."""
        key = config.model.model_dump_json()
        if key not in self._bases:
            self._bases[key] = super().take_base(config, device)
        return copy.deepcopy(self._bases[key])

    def load_base(self, model: ModelConfig, attention: str | None) -> Any:
        """See `ProcessCache`."""
        base = load_base(model, attention, without_weights=True)
        # Only models spread over several devices need it, and the trainer would take this for one.
        if hasattr(base, "hf_device_map"):
            del base.hf_device_map
        return base


def give_values(model: torch.nn.Module) -> None:
    """Give each trained parameter zeros of its shape that take no memory: one zero, expanded.

    Some optimizers refuse parameters on the meta device.
    """
    made: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False, remove_duplicate=False))
        for name, parameter in own.items():
            if not (parameter.is_meta and parameter.requires_grad):
                continue
            if id(parameter) not in made:
                zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
                made[id(parameter)] = torch.nn.Parameter(zeros)
            module.register_parameter(name, made[id(parameter)])
