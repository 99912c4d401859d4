"""Merges an adapter into its base model, so that the merged model is the trained one.

PEFT's `merge_and_unload` adds an update to whatever tensor a layer has. Where two layers share one
(the embeddings and a tied output head, the copies that `layer_replication` makes), it would reach
the other layer too; so each layer gets a tensor of its own first. The sum is computed in float32
and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from trial.config.errors import ConfigError, Problem
from trial.config.trial_config import TrialConfig

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[str, ...] = get_args(Dtype)
"""Types that merged weights can have."""


def merged_model(config: TrialConfig, adapter: Path, dtype: str | None = None) -> Any:
    """The base model of the trial with its adapter merged in, on the CPU.

    Args:
        config: of the trial.
        adapter: folder of the PEFT adapter.
        dtype: type of the merged weights; by default `model.dtype`.

    Raises:
        ConfigError: the merged model would have no place for a part of the adapter.
        ValueError: PEFT cannot load or merge it.
    """
    import torch
    from peft import PeftModel

    from trial.model.load import load_base
    from trial.model.whole_model import ties_embeddings

    base = load_base(config.model, None).to(getattr(torch, dtype or config.model.dtype))
    was_tied = ties_embeddings(base)
    try:
        model = PeftModel.from_pretrained(base, str(adapter))
        _refuse_unmergeable(model)
        unshare_weights(model)
        _merge_layers(model)
        merged = model.merge_and_unload()
    except ConfigError:
        raise
    except Exception as error:
        # PEFT and safetensors raise any kind for an adapter that they cannot read or merge.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{adapter}: PEFT cannot merge this adapter ({reason}); export it without --merge"
        ) from error
    if was_tied:
        _tie_if_equal(merged)
    _replicate_layer_types(merged, (config.lora.model_extra or {}).get("layer_replication"))
    return merged


def _refuse_unmergeable(model: Any) -> None:
    """Refuse an adapter that no weight of the base model could take up.

    Raises:
        ConfigError: names the key, and the first layer concerned.
    """
    otherwise = "export it without --merge"
    if tokens := getattr(model.peft_config[model.active_adapter], "alora_invocation_tokens", None):
        rule = f"null for a merged model: the adapter acts after these tokens only; {otherwise}"
        raise ConfigError([Problem("lora.alora_invocation_tokens", rule, repr(tokens))])
    for name, module in model.named_modules():
        has_bias = any(getattr(module, "lora_bias", {}).values())
        if has_bias and getattr(module.get_base_layer(), "bias", None) is None:
            layer = name.removeprefix("base_model.model.")
            rule = f"false for a merged model: {layer} has no bias that it could be added to"
            raise ConfigError([Problem("lora.lora_bias", f"{rule}; {otherwise}", "true")])


def unshare_weights(model: Any) -> None:
    """Give every module tensors of its own: the second of two that share one gets a copy."""
    import torch

    seen: set[tuple[Any, ...]] = set()
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            key = _identity(parameter)
            if key in seen:
                copy = parameter.detach().clone()
                setattr(module, name, torch.nn.Parameter(copy, requires_grad=False))
            seen.add(key)


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tuple(tensor.shape), tensor.stride()


def _merge_layers(model: Any) -> None:
    """Merge each layer with its weight in float32, then round to the weight's own type."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for module in model.modules():
        if not isinstance(module, BaseTunerLayer) or not hasattr(module, "merge"):
            continue
        base = module.get_base_layer()
        dtype = getattr(getattr(base, "weight", None), "dtype", None)
        if dtype is None:
            continue
        base.float()
        module.merge()
        base.to(dtype)


def _tie_if_equal(model: Any) -> None:
    """Tie input embeddings and output head again where they are still the same.

    PEFT has set `tie_word_embeddings` to false, since each had a tensor of its own.
    """
    import torch

    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    if outputs is None:
        return
    equal = torch.equal(inputs.weight, outputs.weight)
    if equal:
        outputs.weight = inputs.weight
    for part in (model.config, model.config.get_text_config()):
        part.tie_word_embeddings = equal


def _replicate_layer_types(model: Any, ranges: Sequence[tuple[int, int]] | None) -> None:
    """Bring the kinds of attention layer by layer in line with `layer_replication`.

    PEFT sets the number of layers, and leaves this list of the configuration as it was.
    """
    types = getattr(model.config, "layer_types", None)
    if ranges and types and len(types) != model.config.num_hidden_layers:
        model.config.layer_types = [types[n] for start, end in ranges for n in range(start, end)]
