"""The one door to optimum-habana, and what lets its GaudiTrainer train without a Gaudi.

Off the device, and only there, eight assumptions of optimum-habana 1.21 are mended; each mend has
its reason beside it. Where `habana_frameworks` can be imported nothing is mended.
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
"""What `adapt_transformers_to_gaudi` adds to every generation configuration."""

FUSED = "gaudi_fused_sdpa"
"""`attn_implementation` of attention as one kernel."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "Habana/llama": {
        "use_fused_adam": True,
        "use_fused_clip_norm": True,
        "use_torch_autocast": True,
    },
}
"""What the hub holds under names that configurations use, so that a trial needs no network."""

DEVICE_ONLY = frozenset(
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
"""Arguments that speed a Gaudi up and that GaudiTrainingArguments refuses or ignores elsewhere."""


@cache
def enter() -> None:
    """Make `optimum.habana` importable without running its `__init__`.

    That file imports diffusion and sentence-embedding trainers, which no sweep needs, and runs
    `pip list` for a version that is missing off the device (IndexError) and on it only logged.
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
    """`GaudiTrainer`, mended where there is no Gaudi."""
    enter()
    from optimum.habana.transformers import trainer

    _torch_checkpoint()
    if not has_gaudi_software():
        _mend(trainer)
    return trainer.GaudiTrainer


@cache
def arguments_class() -> type[Any]:
    """`GaudiTrainingArguments`; off the device a subclass that lets DeepSpeed in."""
    enter()
    from optimum.habana.transformers.training_args import GaudiTrainingArguments

    return (
        GaudiTrainingArguments
        if has_gaudi_software()
        else _off_device_arguments(GaudiTrainingArguments)
    )


def off_device_arguments() -> dict[str, Any]:
    """Keyword arguments without which the arguments refuse to exist off the device."""
    return {
        "use_habana": False,
        "use_cpu": True,
        # Defaults to True, which is refused without a Gaudi.
        "use_lazy_mode": False,
        # The default, hpu_amp, makes bf16 a silent no-op on CPU tensors.
        "half_precision_backend": "cpu_amp",
    }


def gaudi_config(content: str | dict[str, Any]) -> Any:
    """The `GaudiConfig`; a mapping or a known name needs no hub, any other name is asked there."""
    if isinstance(content, str):
        content = PUBLISHED.get(content, content)
    enter()
    from optimum.habana.transformers.gaudi_configuration import GaudiConfig

    return (
        GaudiConfig.from_pretrained(content) if isinstance(content, str) else GaudiConfig(**content)
    )


def evaluation_inputs(trainer: Any) -> dict[str, Any]:
    """Inputs that GaudiTrainer adds to every training batch, for our own evaluation loop."""
    enter()
    from optimum.habana.transformers.trainer import _get_input_update_settings

    _, extra = _get_input_update_settings(trainer.model, lazy_mode=trainer.args.use_lazy_mode)
    return extra


def mark_step() -> None:
    """Let a Gaudi in lazy mode run what it has been given; elsewhere nothing waits for that."""
    if (core := sys.modules.get("habana_frameworks.torch.core")) is not None:
        core.mark_step()


def mend_model(model: Any) -> None:
    """Give the generation configuration the flags that GaudiTrainer reads unasked."""
    generation = getattr(model, "generation_config", None)
    if generation is None or has_gaudi_software():
        return
    for flag in FLASH_FLAGS:
        if not hasattr(generation, flag):
            setattr(generation, flag, False)


def fuse_attention(model: Any, config: TrialConfig) -> None:
    """Turn fused attention on in models that go by their generation configuration.

    optimum-habana's Llama, Qwen2, Gemma and their like never read `attn_implementation`, and fall
    back to attention that keeps a matrix of all pairs of tokens.
    """
    generation = getattr(model, "generation_config", None)
    if generation is None or config.model.attn_implementation != FUSED:
        return
    generation.use_flash_attention = True
    for flag in ("flash_attention_recompute", "flash_attention_causal_mask"):
        setattr(generation, flag, bool(config.training.get(flag)))


def mend_trainer(trainer: Any, config: TrialConfig) -> None:
    """Turn bf16 autocast on again: GaudiTrainer notes it before its base class clears the note."""
    trainer.use_cpu_amp = bool(config.training.get("bf16")) and config.zero_stage is None


def mend_checkpointing(trainer: Any) -> None:
    """Give DeepSpeed trials torch's checkpointing back.

    GaudiTrainer replaces it, for the whole process, by one that returns a tuple for a tensor.
    """
    if trainer.args.gradient_checkpointing and trainer.args.deepspeed:
        _restore_checkpoint(trainer, trainer.args.gradient_checkpointing_kwargs)


def mend_lazy_checkpointing(trainer: Any) -> None:
    """Give lazy trials torch's checkpointing where optimum-habana's copy of it is too old.

    Its copy calls a function of torch by position, and torch has since put `early_stop` in front of
    the model's own arguments: each would take the place of the one before it.
    """
    import inspect

    import torch.utils.checkpoint

    args, called = trainer.args, torch.utils.checkpoint._checkpoint_without_reentrant_generator
    if not (args.gradient_checkpointing and args.use_lazy_mode and not args.deepspeed):
        return
    if "early_stop" in inspect.signature(called).parameters:
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


def _mend(trainer: Any) -> None:
    from transformers.integrations.deepspeed import deepspeed_init

    # `log` reads the HPU's memory at every entry, through habana_frameworks.
    trainer.get_hpu_memory_stats = lambda device=None: {}
    # Its own moves the model to the literal device "hpu"; transformers' leaves it where it is.
    trainer.deepspeed_init = deepspeed_init


def _off_device_arguments(base: type[Any]) -> type[Any]:
    import torch

    class OffDeviceArguments(base):  # type: ignore[misc]
        """GaudiTrainingArguments that pose as an HPU's while their DeepSpeed check runs."""

        def __post_init__(self) -> None:
            self._posing = bool(self.deepspeed)
            try:
                super().__post_init__()
            finally:
                self._posing = False

        @property
        def device(self) -> Any:
            device = super().device
            # "This version of DeepSpeed must be run on HPUs" looks at nothing but this.
            return torch.device("hpu") if getattr(self, "_posing", False) else device

    OffDeviceArguments.__name__ = base.__name__
    OffDeviceArguments.__qualname__ = base.__qualname__
    return OffDeviceArguments
