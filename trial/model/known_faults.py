"""Architectures that transformers computes wrongly where a trainer uses them, told by name."""

from __future__ import annotations

from typing import Any

from trial.config.errors import Problem
from trial.config.sections import ModelConfig
from trial.devices.compat import text_attention_name

RIGHT_ATTENTION = {"doge": "eager"}
"""The one `attn_implementation` of a model type that is right. Doge's others, in transformers 4.55,
let every token of a batch without padding see the ones after it."""
STATE = "recurrent_states"
"""An attribute of modules that hold the state of the last batch, and go on from it unless a cache
is used, as RecurrentGemma's in transformers 4.55 do: a second step has another batch's state, and
its backward pass fails."""


def known_faults(base: Any, model: ModelConfig) -> list[Problem]:
    """Why a loaded base model cannot be trained as it is.

    Args:
        base: The model, with or without weights.
        model: The `model` section of the trial.
    """
    kind, attention = base.config.model_type, text_attention_name(base)
    problems = []
    right = RIGHT_ATTENTION.get(kind)
    if right is not None and attention != right:
        rule = f"{right} for a model of type {kind}: with others, tokens see the ones after them"
        problems.append(Problem("model.attn_implementation", rule, repr(attention), right))
    kinds = {str(weight.dtype) for weight in base.parameters() if weight.dtype.itemsize == 1}
    if kinds:
        rule = f"weights of 16 or 32 bits, not {', '.join(sorted(kinds))}"
        problems.append(Problem("model.name_or_path", rule, repr(model.name_or_path)))
    if any(hasattr(part, STATE) for part in base.modules()):
        rule = f"a model that starts each batch anew: {type(base).__name__} keeps the last one's"
        problems.append(Problem("model.name_or_path", f"{rule} state", repr(model.name_or_path)))
    return problems
