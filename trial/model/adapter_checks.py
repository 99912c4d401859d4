"""Keys of `lora` that PEFT accepts and that then do nothing, or fail at the first step."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trial.config.errors import ConfigError, Problem, nearest
from trial.config.sections import LoraSection
from trial.model.lora_targets import layer_of

TOKENS_KEY = "lora.trainable_token_indices"
INVOCATION_KEY = "lora.alora_invocation_tokens"
_PATTERNS = ("rank_pattern", "alpha_pattern")


def refuse_unknown_tokens(base: Any, lora: LoraSection) -> None:
    """Refuse `trainable_token_indices` that are no rows of their weight, or are trained as a whole.

    Args:
        base: The model, without an adapter.
        lora: The `lora` section of the trial.

    Raises:
        ConfigError: there are some.
    """
    extra = lora.model_extra or {}
    given = extra.get("trainable_token_indices")
    if given is None:
        return
    embeddings = base.get_input_embeddings()
    names = {name for name, part in base.named_modules() if part is embeddings}
    by_name = given if isinstance(given, Mapping) else dict.fromkeys(names, given)
    saved = list(extra.get("modules_to_save") or [])
    for name, tokens in by_name.items():
        both = [other for other in saved if _ends_with(name, other) or _ends_with(other, name)]
        if both:
            rule = f"null where `modules_to_save` trains all of {both[0]}"
            raise ConfigError([Problem(TOKENS_KEY, rule, repr(given))])
        _refuse_unknown_tokens(base, TOKENS_KEY, tokens)


def refuse_unknown_names(base: Any, lora: LoraSection) -> None:
    """Refuse patterns that no module of the model matches, and tokens that begin no adapter.

    A pattern of a module that another trial's `target_modules` leaves out is none of them.

    Args:
        base: The model, without an adapter.
        lora: The `lora` section of the trial.

    Raises:
        ConfigError: there are some.
    """
    extra = lora.model_extra or {}
    names = [name for name, _ in base.named_modules()]
    names += [name for name, _ in base.named_parameters()]
    excluded = extra.get("exclude_modules") or []
    patterns = [(key, p) for key in _PATTERNS for p in extra.get(key) or {}]
    # As PEFT matches them.
    expressions = [(key, pattern, rf"(.*\.)?({pattern})") for key, pattern in patterns]
    if isinstance(excluded, str):
        expressions.append(("exclude_modules", excluded, excluded))
    else:
        expressions += [("exclude_modules", e, rf"(.*\.)?{re.escape(e)}") for e in excluded]
    for key, pattern, expression in expressions:
        if not any(re.fullmatch(expression, name) for name in names):
            ends = sorted({name.rpartition(".")[2] for name in names if "." in name})
            rule = "a name or an expression that modules of the model match"
            raise ConfigError([Problem(f"lora.{key}", rule, repr(pattern), nearest(pattern, ends))])
    tokens = extra.get("alora_invocation_tokens")
    if tokens is not None:
        _refuse_unknown_tokens(base, INVOCATION_KEY, tokens)


def _refuse_unknown_tokens(base: Any, key: str, tokens: Sequence[int]) -> None:
    size = base.get_input_embeddings().weight.shape[0]
    if not tokens or not all(0 <= token < size for token in tokens):
        rule = f"at least one number of a token, from 0 to {size - 1}"
        raise ConfigError([Problem(key, rule, repr(tokens))])


def refuse_idle_keys(model: Any, lora: LoraSection) -> None:
    """Refuse layers and parameters that the adapter does not reach: PEFT ignores them.

    Args:
        model: The PEFT model.
        lora: The `lora` section of the trial.

    Raises:
        ConfigError: there are some.
    """
    extra = lora.model_extra or {}
    adapted = [name for name, _ in model.named_modules() if name.endswith(".lora_A")]
    layers = extra.get("layers_to_transform")
    if layers is not None:
        wanted = {layers} if isinstance(layers, int) else set(layers)
        if idle := sorted(wanted - {layer_of(name) for name in adapted}):
            rule = f"numbers of layers that the adapter reaches; no module was found in {idle}"
            raise ConfigError([Problem("lora.layers_to_transform", rule, repr(layers))])
    _refuse_starts(model, lora)
    names = {name for name, _ in model.base_model.model.named_parameters()}
    names = {name.replace(".base_layer", "") for name in names}
    for wanted_name in extra.get("target_parameters") or []:
        if not any(_ends_with(name, wanted_name) for name in names):
            rule = "names of parameters that the model has"
            raise ConfigError([Problem("lora.target_parameters", rule, repr(wanted_name))])


def _refuse_starts(model: Any, lora: LoraSection) -> None:
    """Refuse an `init_lora_weights` that PEFT cannot compute for one of the adapted layers.

    With weights PEFT itself fails, for OLoRA and MiCA in words that name no key; without weights
    (`trial.rehearsal`) it computes no start.

    Raises:
        ConfigError: names the first such layer.
    """
    from transformers.pytorch_utils import Conv1D

    start = (lora.model_extra or {}).get("init_lora_weights")
    if start not in ("eva", "mica", "olora"):
        return
    for name, layer in model.named_modules():
        if not hasattr(layer, "lora_A") or not layer.lora_A:
            continue
        shown = name.removeprefix("base_model.model.")
        rule = ""
        if start == "olora" and isinstance(layer.get_base_layer(), Conv1D):
            rule = f"another start: PEFT's olora cannot start {shown}, whose weight is transposed"
        elif start == "eva" and ".experts." in name:
            rule = f"another start: eva needs all tokens, and {shown} gets a part of them"
        if rule:
            raise ConfigError([Problem("lora.init_lora_weights", rule, repr(start))])
        most = min(layer.in_features, layer.out_features)
        if start == "mica" and max(layer.r.values()) > most:
            rule = f"at most {most} for mica: the smaller side of {shown}"
            raise ConfigError([Problem("lora.r", rule, str(max(layer.r.values())))])


def _ends_with(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")
