"""Initial LoRA adapters as PEFT creates them, from a copy of the base model without weights.

So a packed trial starts from the same adapter as in a run alone, and saves it under PEFT's own
names, without touching the base model that other trials are training on.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from trial.config.trial_config import TrialConfig
from trial.model.adapter_checks import refuse_unknown_names
from trial.model.dropout.lora_dropout import lora_layers
from trial.model.load import count_parameters, lora_config
from trial.multi_lora.packable import NotPackableError


@dataclass(frozen=True, slots=True)
class InitialLayer:
    """One adapted layer as PEFT created it."""

    name: str
    """The layer's path in the base model."""
    layer_index: int
    """Index of the layer among the adapted ones, part of the key of its dropout hash."""
    a: torch.Tensor
    """[r, in], float32."""
    b: torch.Tensor
    """[out, r], float32."""
    scale: float
    """Factor of the product of A and B: `lora_alpha / r`, with rsLoRA `lora_alpha / sqrt(r)`."""
    keys: tuple[str, str]
    """Names of A and B in `adapter_model.safetensors`."""


@dataclass(frozen=True, slots=True)
class InitialAdapter:
    """A trial's adapter before its first step."""

    config: Any
    """PEFT's `LoraConfig`, with its target modules resolved."""
    layers: tuple[InitialLayer, ...]
    parameters: tuple[int, int]
    """Numbers of trainable and of all parameters."""

    @property
    def nbytes(self) -> int:
        """Bytes of A and B of all layers."""
        return sum(layer.a.nbytes + layer.b.nbytes for layer in self.layers)


CACHE_BYTES = 1 << 29
"""Bytes of initial adapters that are kept; the least recently used one is dropped first.

Trials with equal `lora` sections and seeds start from the same one."""


class AdapterInitializer:
    """Creates initial adapters on a copy of the base model whose weights take no memory."""

    def __init__(self, base: Any) -> None:
        memo: dict[int, Any] = {id(p): _without_memory(p) for p in base.parameters()}
        self.model = copy.deepcopy(base, memo)
        self._cache: dict[tuple[str, int], InitialAdapter] = {}

    def create(self, config: TrialConfig) -> InitialAdapter:
        """The adapter that the trial's seed gives, as in a run of its own.

        Raises:
            NotPackableError: PEFT adapts something else than linear layers.
            ConfigError: a key of `lora` is about modules that the model lacks.
        """
        # All that the initial values depend on; the other settings are the slot's.
        key = config.lora.model_dump_json(), config.training["seed"]
        initial = self._cache.pop(key, None) or self._create(config)
        self._cache[key] = initial
        while sum(kept.nbytes for kept in self._cache.values()) > CACHE_BYTES:
            if len(self._cache) == 1:
                break
            del self._cache[next(iter(self._cache))]
        return initial

    def _create(self, config: TrialConfig) -> InitialAdapter:
        import transformers
        from peft import get_peft_model

        refuse_unknown_names(self.model, config.lora)
        transformers.set_seed(config.training["seed"])
        model = get_peft_model(self.model, lora_config(config.lora))
        try:
            layers = tuple(
                _initial(layer_index, name, layer)
                for layer_index, name, layer in lora_layers(model)
            )
            # unload() takes the layers off; the copy keeps the resolved configuration.
            return InitialAdapter(
                copy.deepcopy(model.peft_config["default"]), layers, count_parameters(model)
            )
        finally:
            self.model = model.unload()


def _without_memory(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    """One zero on the CPU, expanded to the shape of a weight."""
    zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
    return torch.nn.Parameter(zeros, requires_grad=False)


def _initial(layer_index: int, name: str, layer: Any) -> InitialLayer:
    from transformers.pytorch_utils import Conv1D

    if not isinstance(layer.get_base_layer(), torch.nn.Linear | Conv1D):
        raise NotPackableError(f"{name}: only linear layers can be packed")
    return InitialLayer(
        name=name.removeprefix("base_model.model."),
        layer_index=layer_index,
        a=layer.lora_A["default"].weight.detach().float().clone(),
        b=layer.lora_B["default"].weight.detach().float().clone(),
        scale=float(layer.scaling["default"]),
        keys=(f"{name}.lora_A.weight", f"{name}.lora_B.weight"),
    )
