"""The only module that imports optimum-habana, and what lets its GaudiTrainer run on a CPU.

optimum-habana 1.21 assumes a Gaudi in several places. Where `habana_frameworks` is not installed
they are patched here, each with its reason beside it; where it is installed they are left alone.
`tests/test_trial/devices/test_optimum_habana_internals.py` names what an upgrade has removed.
"""

from __future__ import annotations

import importlib.machinery
import sys
import types
from functools import cache
from pathlib import Path
from typing import Any

from trial.config.trial_config import TrialConfig
from trial.devices.detect import has_gaudi_software

FLASH_FLAGS = (
    "attn_softmax_bf16",
    "use_flash_attention",
    "flash_attention_recompute",
    "flash_attention_causal_mask",
)
"""Flags that optimum-habana's `adapt_transformers_to_gaudi` adds to generation configurations."""

FUSED_SDPA = "gaudi_fused_sdpa"
"""`attn_implementation` of Habana's fused scaled-dot-product attention."""

PUBLISHED_CONFIGS: dict[str, dict[str, Any]] = {
    "Habana/llama": {
        "use_fused_adam": True,
        "use_fused_clip_norm": True,
        "use_torch_autocast": True,
    },
}
"""GaudiConfigs of the hub by id, for ids that configurations use: no network is needed for them."""

HPU_ONLY_ARGUMENTS = frozenset(
    {
        "use_lazy_mode",
        "gaudi_config_name",
        "use_hpu_graphs",
        "use_hpu_graphs_for_inference",
        "use_hpu_graphs_for_training",
        "disable_tensor_cache_hpu_graphs",
        "max_hpu_graphs",
        "pipelining_fwd_bwd",
        "flash_attention_recompute",
        "flash_attention_fast_softmax",
        "flash_attention_causal_mask",
        "flash_attention_fp8",
        "minimize_memory",
        "fp8",
    }
)
"""Arguments for a Gaudi alone, which GaudiTrainingArguments refuses or ignores elsewhere."""


@cache
def make_importable() -> None:
    """Make `optimum.habana` importable without running its `__init__`.

    Its `__init__` imports diffusion and sentence-embedding trainers, which no sweep needs, and runs
    `pip list` for a version that is not there without a Gaudi (IndexError) and only logged with
    one.
    """
    if "optimum.habana" in sys.modules:
        return
    import optimum

    root = next(Path(path, "habana") for path in optimum.__path__ if Path(path, "habana").is_dir())
    spec = importlib.machinery.ModuleSpec("optimum.habana", None, is_package=True)
    spec.submodule_search_locations = [str(root)]
    package = types.ModuleType("optimum.habana")
    package.__spec__ = spec
    package.__path__ = [str(root)]
    sys.modules["optimum.habana"] = package
    optimum.habana = package


@cache
def trainer_class() -> type[Any]:
    """`GaudiTrainer`, patched where there is no Gaudi."""
    make_importable()
    from optimum.habana.transformers import trainer

    _torch_checkpoint()
    if not has_gaudi_software():
        _patch_trainer_module(trainer)
    return trainer.GaudiTrainer


@cache
def arguments_class() -> type[Any]:
    """`GaudiTrainingArguments`; without a Gaudi a subclass that allows DeepSpeed."""
    make_importable()
    from optimum.habana.transformers.training_args import GaudiTrainingArguments

    return (
        GaudiTrainingArguments
        if has_gaudi_software()
        else _off_device_arguments(GaudiTrainingArguments)
    )


def off_device_arguments() -> dict[str, Any]:
    """Values that `GaudiTrainingArguments` must be given on a CPU."""
    return {
        "use_habana": False,
        "use_cpu": True,
        # Defaults to True, which is refused without a Gaudi.
        "use_lazy_mode": False,
        # The default, hpu_amp, makes bf16 a silent no-op on CPU tensors.
        "half_precision_backend": "cpu_amp",
    }


def gaudi_config(content: str | dict[str, Any]) -> Any:
    """The `GaudiConfig` of a mapping, an id of `PUBLISHED_CONFIGS`, a folder, or a hub id."""
    if isinstance(content, str):
        content = PUBLISHED_CONFIGS.get(content, content)
    make_importable()
    from optimum.habana.transformers.gaudi_configuration import GaudiConfig

    return (
        GaudiConfig.from_pretrained(content) if isinstance(content, str) else GaudiConfig(**content)
    )


def evaluation_inputs(trainer: Any) -> dict[str, Any]:
    """Keyword arguments of the model that GaudiTrainer adds to every training batch."""
    make_importable()
    from optimum.habana.transformers.trainer import _get_input_update_settings

    _, inputs = _get_input_update_settings(trainer.model, lazy_mode=trainer.args.use_lazy_mode)
    return inputs


def mark_step() -> None:
    """Start the operations that lazy mode has accumulated; no effect without Habana's software."""
    if (core := sys.modules.get("habana_frameworks.torch.core")) is not None:
        core.mark_step()


def add_missing_generation_flags(model: Any) -> None:
    """Add the flags that GaudiTrainer reads from a generation configuration, without a Gaudi."""
    generation = getattr(model, "generation_config", None)
    if generation is None or has_gaudi_software():
        return
    for flag in FLASH_FLAGS:
        if not hasattr(generation, flag):
            setattr(generation, flag, False)


def enable_fused_attention(model: Any, config: TrialConfig) -> None:
    """Turn fused attention on in models that read it from their generation configuration.

    optimum-habana's Llama, Qwen2 and Gemma models, among others, do not read `attn_implementation`;
    without the flag they compute the whole matrix of attention weights, [tokens, tokens].
    """
    generation = getattr(model, "generation_config", None)
    if generation is None or config.model.attn_implementation != FUSED_SDPA:
        return
    generation.use_flash_attention = True
    for flag in ("flash_attention_recompute", "flash_attention_causal_mask"):
        setattr(generation, flag, bool(config.training.get(flag)))


def restore_autocast(trainer: Any, config: TrialConfig) -> None:
    """Turn bf16 autocast on again: GaudiTrainer sets the flag before its base class resets it."""
    trainer.use_cpu_amp = bool(config.training.get("bf16")) and config.zero_stage is None


def repair_checkpointing(trainer: Any) -> None:
    """Restore torch's gradient checkpointing in a DeepSpeed trial.

    GaudiTrainer replaces it, in the whole process, by a function that calls `tuple` on the output:
    a single tensor would be split along its batch.
    """
    if trainer.args.gradient_checkpointing and trainer.args.deepspeed:
        _restore_checkpoint(trainer, trainer.args.gradient_checkpointing_kwargs)


def repair_lazy_checkpointing(trainer: Any) -> None:
    """Restore torch's gradient checkpointing in lazy trials where optimum-habana's is too old.

    Its copy of torch's `checkpoint` (optimum/habana/transformers/gradient_checkpointing.py) calls a
    private function of torch with positional arguments. torch has since inserted `early_stop`
    before the model's arguments, the first of which would take its place.
    """
    from trial.devices.compat_torch import checkpoint_generator_stops_early

    args = trainer.args
    if not (args.gradient_checkpointing and args.use_lazy_mode and not args.deepspeed):
        return
    if checkpoint_generator_stops_early():
        _restore_checkpoint(trainer, {"use_reentrant": False})


def _restore_checkpoint(trainer: Any, keywords: Any) -> None:
    import torch.utils.checkpoint
    import transformers.modeling_utils

    original = _torch_checkpoint()
    torch.utils.checkpoint.checkpoint = original
    transformers.modeling_utils.checkpoint = original
    trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=keywords)


@cache
def _torch_checkpoint() -> Any:
    import torch.utils.checkpoint

    return torch.utils.checkpoint.checkpoint


def _patch_trainer_module(trainer: Any) -> None:
    from transformers.integrations.deepspeed import deepspeed_init

    # `GaudiTrainer.log` reads the HPU's memory at every entry, through habana_frameworks.
    trainer.get_hpu_memory_stats = lambda device=None: {}
    # optimum-habana's moves the model to the literal device "hpu"; transformers' does not move it.
    trainer.deepspeed_init = deepspeed_init


def _off_device_arguments(base: type[Any]) -> type[Any]:
    import torch

    class OffDeviceArguments(base):  # type: ignore[misc]
        """GaudiTrainingArguments whose device reads as `hpu` during their DeepSpeed check."""

        def __post_init__(self) -> None:
            self._report_hpu = bool(self.deepspeed)
            try:
                super().__post_init__()
            finally:
                self._report_hpu = False

        @property
        def device(self) -> Any:
            device = super().device
            # The check "This version of DeepSpeed must be run on HPUs" reads this property alone.
            return torch.device("hpu") if getattr(self, "_report_hpu", False) else device

    OffDeviceArguments.__name__ = base.__name__
    OffDeviceArguments.__qualname__ = base.__qualname__
    return OffDeviceArguments
