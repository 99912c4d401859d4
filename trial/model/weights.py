"""Saves trained weights in folders that plain PEFT and transformers can load."""

from __future__ import annotations

import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from trial.devices.compat import is_zero_parameter
from trial.distributed import rank_env
from trial.model.whole_model import save_model
from trial.store.files import atomic_folder

StateDict = dict[str, torch.Tensor]


def save_weights(
    model: Any, folder: Path, tokenizer: Any | None = None, *, dtype: str | None = None
) -> None:
    """Save a PEFT adapter, or a model without one, atomically.

    `model` is not wrapped (by DDP or DeepSpeed). Under ZeRO-3 every rank must call this; rank 0
    writes. An adapter is saved in float32; a model in the type called `dtype`, or in those that its
    weights are held in.
    """
    state = trained_state(model)
    if rank_env.rank():
        return
    with atomic_folder(folder) as temporary:
        if hasattr(model, "peft_config"):
            _save_adapter(model, state, temporary)
        else:
            save_model(model, temporary, state, dtype)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)


def trained_state(model: Any) -> StateDict:
    """Trainable parameters of a PEFT model, or all of another, gathered from ZeRO, on the CPU.

    Every name has a tensor of its own, except that tensors which a whole model ties stay shared.
    """
    if hasattr(model, "peft_config"):
        # With the second name of a shared parameter (`ensure_weight_tying`): PEFT asks for both.
        named = model.named_parameters(remove_duplicate=False)
        tensors = {name: p for name, p in named if p.requires_grad}
        shared: dict[int, torch.Tensor] | None = None
    else:
        tensors, shared = model.state_dict(keep_vars=True), {}
    partitioned = {id(tensor): tensor for tensor in tensors.values() if is_zero_parameter(tensor)}
    with _gather_from_zero(list(partitioned.values())):
        return {name: _copy(tensor, shared) for name, tensor in tensors.items()}


def _copy(tensor: torch.Tensor, copies: dict[int, torch.Tensor] | None) -> torch.Tensor:
    """A copy on the CPU; the earlier one of the same tensor, if `copies` has it."""
    copy = copies.get(id(tensor)) if copies is not None else None
    if copy is None:
        copy = tensor.detach().cpu().clone()
        if copies is not None:
            copies[id(tensor)] = copy
    return copy


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder of weights atomically; files are hard links where the file system allows it."""
    if rank_env.rank():
        return
    with atomic_folder(target) as temporary:
        shutil.copytree(source, temporary, copy_function=_link, dirs_exist_ok=True)


def write_adapter(tensors: StateDict, config: Any, folder: Path) -> None:
    """Write tensors by their saved names, and PEFT's `config`, atomically; rank 0 writes."""
    if rank_env.rank():
        return
    with atomic_folder(folder) as temporary:
        _write_adapter(tensors, config, temporary)


def _save_adapter(model: Any, state: StateDict, folder: Path) -> None:
    from peft import get_peft_model_state_dict

    # False, not "auto": that may ask the hub whether the vocabulary has grown. It has not.
    adapter = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    _write_adapter(adapter, model.peft_config[model.active_adapter], folder)


def _write_adapter(adapter: StateDict, config: Any, folder: Path) -> None:
    from safetensors.torch import save_file

    tensors = {name: tensor.float().contiguous() for name, tensor in adapter.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    inference_mode, config.inference_mode = config.inference_mode, True
    try:
        config.save_pretrained(str(folder))
    finally:
        config.inference_mode = inference_mode


def _gather_from_zero(parameters: list[torch.Tensor]) -> Any:
    """A context in which parameters that ZeRO-3 partitioned are whole."""
    if not parameters:
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
