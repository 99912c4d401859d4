"""Saves whole models, so that plain transformers loads what was trained.

Two things of `save_pretrained` stand in the way. It refuses generation settings that it would only
warn of when it loads them (Llama 2 came with a temperature and no `do_sample`). And it refuses, or
leaves out, tensors that several modules share.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

from trial.devices.compat import tied_names

logger = logging.getLogger(__name__)
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Generation settings that are kept whatever is wrong with the others."""


def save_model(
    model: Any,
    folder: Path,
    state: dict[str, torch.Tensor] | None = None,
    dtype: str | None = None,
) -> None:
    """Write a model's weights, configuration and generation settings.

    Args:
        model: of transformers, not wrapped.
        folder: an existing folder.
        state: weights by name, if not the model's own.
        dtype: name of the type that is written, if not the one that the weights are held in.
    """
    generation = getattr(model, "generation_config", None)
    use_cache = getattr(model.config, "use_cache", None)
    if use_cache is False:
        # It is off only while a model trains (`trial.model.load`).
        model.config.use_cache = True
    if generation is not None:
        model.generation_config = _repaired_when_saved(generation)
    try:
        tensors = unshared(model, model.state_dict() if state is None else state)
        if dtype is not None:
            tensors = _cast(tensors, getattr(torch, dtype))
        model.save_pretrained(folder, state_dict=tensors, safe_serialization=True)
        if dtype is not None:
            _state_dtype(folder / "config.json", dtype)
    finally:
        if use_cache is False:
            model.config.use_cache = False
        if generation is not None:
            model.generation_config = generation


def _cast(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state dict with floating-point tensors of this type; shared ones stay shared."""
    cast = {
        id(tensor): tensor.to(dtype) if tensor.is_floating_point() else tensor
        for tensor in state.values()
    }
    return {name: cast[id(tensor)] for name, tensor in state.items()}


def _state_dtype(config: Path, dtype: str) -> None:
    """Name the type that was written: transformers wrote that of the weights in memory."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["torch_dtype"] = dtype
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def unshared(model: Any, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict, with copies of shared tensors that `from_pretrained` would not restore.

    A tensor stays shared where the model declares its name as tied and its configuration ties it:
    then it is written once.
    """
    tied = tied_names(model) if ties_embeddings(model) else []
    names_of = defaultdict(list)
    for name, tensor in state.items():
        names_of[(tensor.data_ptr(), tensor.numel())].append(name)
    copies = {}
    for names in names_of.values():
        own = [name for name in names if not any(re.search(key, name) for key in tied)]
        for name in (own or names)[1:]:
            copies[name] = state[name].clone()
    return {**state, **copies}


def ties_embeddings(model: Any) -> bool:
    """Whether transformers ties the output head to the embeddings when it loads the model."""
    return bool(getattr(model.config.get_text_config(), "tie_word_embeddings", True))


def _repaired_when_saved(generation: Any) -> Any:
    """A copy that repairs itself when it is saved, after `save_pretrained` has added to it."""
    base = type(generation)

    def save_pretrained(self: Any, folder: Any, *rest: Any, **named: Any) -> None:
        plain = copy.deepcopy(self)
        plain.__class__ = base
        if changed := repair_generation(plain):
            logger.warning("generation settings without effect are left out: %s", changed)
        plain.save_pretrained(folder, *rest, **named)

    repaired = copy.deepcopy(generation)
    repaired.__class__ = type(base.__name__, (base,), {"save_pretrained": save_pretrained})
    return repaired


def repair_generation(generation: Any) -> dict[str, Any]:
    """Reset generation settings until transformers accepts them; returns those it had.

    Settings that its complaint names go back to their defaults, which changes no generated text:
    nearly all complaints are about settings that have no effect beside others. Where it names none,
    only ids of tokens are kept.
    """
    defaults = vars(type(generation)())
    changed: dict[str, Any] = {}
    while (complaint := _complaint(generation)) is not None:
        given = {
            name: value
            for name, value in vars(generation).items()
            if not name.startswith("_") and value != defaults.get(name)
        }
        named = [name for name in given if re.search(rf"\b{name}\b", complaint)]
        wrong = named or [name for name in given if name not in TOKEN_IDS]
        if not wrong:
            break
        for name in wrong:
            changed[name] = given[name]
            if name in defaults:
                setattr(generation, name, defaults[name])
            else:
                delattr(generation, name)
    return changed


def _complaint(generation: Any) -> str | None:
    """What transformers holds against these settings; None for nothing."""
    try:
        generation.validate(strict=True)
    except (ValueError, TypeError, AttributeError) as error:
        return str(error)
    return None
