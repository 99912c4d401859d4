"""The base model without its weights: on it PEFT draws adapters, names their tensors, checks them.

So a packed trial starts from the very adapter its solo run starts from, and what it saves is PEFT's
own format, without touching the base model that other trials are training on.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from trial.config.trial_config import TrialConfig
from trial.model.load import count_parameters, lora_config
from trial.model.lora_dropout import lora_layers


class NotPackableError(ValueError):
    """The trial's adapter is none that a packed job can train: it trains alone."""


@dataclass(frozen=True, slots=True)
class InitialLayer:
    """One adapted layer as PEFT made it."""

    name: str
    """The layer's path in the base model."""
    site: int
    """Its number among the adapted layers."""
    a: torch.Tensor
    """[r, in_features], float32."""
    b: torch.Tensor
    """[out_features, r], float32."""
    scale: float
    keys: tuple[str, str]
    """What `adapter_model.safetensors` calls them."""


@dataclass(frozen=True, slots=True)
class InitialAdapter:
    """A trial's adapter before its first step."""

    config: Any
    """PEFT's `LoraConfig`, its target modules resolved."""
    layers: tuple[InitialLayer, ...]
    parameters: tuple[int, int]
    """Trainable and all parameters."""

    def size(self) -> int:
        """Bytes."""
        return sum(layer.a.nbytes + layer.b.nbytes for layer in self.layers)


KEPT = 1 << 29
"""Bytes of drawn adapters that are kept: trials of one seed and rank start from the same one."""


class AdapterInitializer:
    """A copy of a base model whose weights take no memory."""

    def __init__(self, base: Any) -> None:
        memo: dict[int, Any] = {id(p): _hollow(p) for p in base.parameters()}
        self.model = copy.deepcopy(base, memo)
        self._drawn: dict[tuple[str, int], InitialAdapter] = {}

    def draw(self, config: TrialConfig) -> InitialAdapter:
        """The adapter that the trial's seed gives, as in a run of its own.

        Raises:
            NotPackableError: PEFT adapts something else than linear layers.
        """
        # All that the draw depends on; what else a trial says is the slot's.
        key = config.lora.model_dump_json(), config.training["seed"]
        found = self._drawn.pop(key, None) or self._draw(config)
        self._drawn[key] = found
        while sum(drawn.size() for drawn in self._drawn.values()) > KEPT and len(self._drawn) > 1:
            del self._drawn[next(iter(self._drawn))]
        return found

    def _draw(self, config: TrialConfig) -> InitialAdapter:
        import transformers
        from peft import get_peft_model

        transformers.set_seed(config.training["seed"])
        model = get_peft_model(self.model, lora_config(config.lora))
        try:
            layers = tuple(_drawn(site, name, layer) for site, name, layer in lora_layers(model))
            # unload() takes the layers off; the resolved configuration stays with what was drawn.
            return InitialAdapter(
                copy.deepcopy(model.peft_config["default"]), layers, count_parameters(model)
            )
        finally:
            self.model = model.unload()


def _hollow(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    """One zero that poses as a whole weight, on the CPU."""
    zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
    return torch.nn.Parameter(zeros, requires_grad=False)


def _drawn(site: int, name: str, layer: Any) -> InitialLayer:
    from transformers.pytorch_utils import Conv1D

    if not isinstance(layer.get_base_layer(), torch.nn.Linear | Conv1D):
        raise NotPackableError(f"{name}: only linear layers can be packed")
    return InitialLayer(
        name=name.removeprefix("base_model.model."),
        site=site,
        a=layer.lora_A["default"].weight.detach().float().clone(),
        b=layer.lora_B["default"].weight.detach().float().clone(),
        scale=float(layer.scaling["default"]),
        keys=(f"{name}.lora_A.weight", f"{name}.lora_B.weight"),
    )
