"""Saves trained weights in folders that plain PEFT and transformers can load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from trial.devices.compat import is_zero_parameter
from trial.distributed import rank_env

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
    with _atomic_folder(folder) as temporary:
        if hasattr(model, "peft_config"):
            _save_adapter(model, state, temporary)
        else:
            _save_model(model, state, temporary, dtype)
            if tokenizer is not None:
                tokenizer.save_pretrained(temporary)


def trained_state(model: Any) -> StateDict:
    """Trainable parameters of a PEFT model, or all of another, gathered from ZeRO, on the CPU."""
    if hasattr(model, "peft_config"):
        # With all its names: PEFT asks for each module that shares a weight.
        parameters = model.named_parameters(remove_duplicate=False)
        tensors = {name: p for name, p in parameters if p.requires_grad}
    else:
        tensors = model.state_dict(keep_vars=True)
    with _gather_from_zero(list(filter(is_zero_parameter, tensors.values()))):
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}


def copy_folder(source: Path, target: Path) -> None:
    """Copy a folder of weights atomically; files are hard links where the file system allows it."""
    if rank_env.rank():
        return
    with _atomic_folder(target) as temporary:
        shutil.copytree(source, temporary, copy_function=_link, dirs_exist_ok=True)


def write_adapter(tensors: StateDict, config: Any, folder: Path) -> None:
    """Write tensors by their saved names, and PEFT's `config`, atomically; rank 0 writes."""
    if rank_env.rank():
        return
    with _atomic_folder(folder) as temporary:
        _write_adapter(tensors, config, temporary)


def _save_model(model: Any, state: StateDict, folder: Path, dtype: str | None) -> None:
    if dtype is not None:
        kind = getattr(torch, dtype)
        state = {name: t.to(kind) if t.is_floating_point() else t for name, t in state.items()}
    model.save_pretrained(folder, state_dict=state, safe_serialization=True)
    if dtype is not None:
        # transformers wrote the type of the weights in memory.
        file = folder / "config.json"
        settings = json.loads(file.read_text(encoding="utf-8"))
        settings["torch_dtype"] = dtype
        file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


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


@contextmanager
def _atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces `folder` if no error occurs."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
