"""What `trial` uses of transformers, accelerate and DeepSpeed beyond their public API.

The functions are the patches; `PRIVATE_NAMES` lists every private name that a module of `trial`
reads, replaces or overrides. After an upgrade, `missing_names` (tests/test_trial/devices/
test_compat.py) tells which of them the new version has dropped. What Gaudi needs beyond that is in
`optimum_habana`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class PrivateName:
    """A name outside a library's public interface."""

    distribution: str
    """As the package index has it."""
    module: str
    name: str
    """An attribute of the module; dotted for an attribute of a class."""
    used_by: str
    """Module of `trial`, and what for."""


PRIVATE_NAMES = (
    # Replaced or reset by the functions below.
    PrivateName(
        "transformers", "transformers.utils.import_utils", "create_import_structure_from_path",
        "devices.compat: scanned once",
    ),
    PrivateName(
        "transformers", "transformers.utils.import_utils", "_datasets_available",
        "preload: not imported",
    ),
    PrivateName(
        "transformers", "transformers.utils.import_utils", "_scipy_available",
        "preload: not imported",
    ),
    PrivateName(
        "transformers", "transformers.utils.import_utils", "_sklearn_available",
        "preload: not imported",
    ),
    PrivateName(
        "transformers", "transformers.trainer", "_is_peft_model",
        "devices.compat: without reading package metadata",
    ),
    PrivateName(
        "transformers", "transformers.trainer", "skip_first_batches",
        "devices.compat: keeps the epoch",
    ),
    PrivateName(
        "transformers", "transformers", "TrainingArguments._n_gpu",
        "training.arguments: no DataParallel",
    ),
    PrivateName(
        "accelerate", "accelerate.state", "AcceleratorState._reset_state",
        "distributed.rank_env: between trials",
    ),
    PrivateName(
        "accelerate", "accelerate.state", "GradientState._reset_state",
        "distributed.rank_env: between trials",
    ),
    PrivateName(
        "accelerate", "accelerate.state", "PartialState._reset_state",
        "distributed.rank_env: between trials",
    ),
    PrivateName(
        "accelerate", "accelerate.data_loader", "DataLoaderShard.set_epoch",
        "devices.compat: it counts epochs in `iteration`",
    ),
    PrivateName(
        "deepspeed", "deepspeed.ops", "__compatible_ops__",
        "distributed.rank_env: no compilation",
    ),
    # Methods of the Trainer that ours overrides: under another name they would never be called.
    *(
        PrivateName(
            "transformers", "transformers", f"Trainer.{name}", "training.trainer: overridden"
        )
        for name in (
            "_get_train_sampler", "_move_model_to_device", "_rotate_checkpoints",
            "_save_checkpoint", "_wrap_model", "floating_point_ops", "get_batch_samples",
        )
    ),
    # Methods of the Trainer that ours calls.
    *(
        PrivateName("transformers", "transformers", f"Trainer.{name}", "training.trainer: called")
        for name in ("_prepare_inputs", "compute_loss_context_manager")
    ),
    # Chat templates with generation markers.
    PrivateName(
        "transformers", "transformers.utils.chat_template_utils", "render_jinja_template",
        "data.text.chat_template: where each answer is in the text",
    ),
    # The state dict of a checkpoint file on the meta device.
    PrivateName(
        "transformers", "transformers.modeling_utils", "load_state_dict",
        "model.load: names and shapes",
    ),
    # Attention of packed jobs.
    PrivateName(
        "transformers", "transformers", "PretrainedConfig._attn_implementation",
        "devices.compat: read and set by packed jobs",
    ),
    PrivateName(
        "transformers", "transformers", "PreTrainedModel._supports_attention_backend",
        "devices.compat: read by packed jobs",
    ),
    PrivateName(
        "transformers", "transformers", "PreTrainedModel._tied_weights_keys",
        "devices.compat: names of tensors that are saved once",
    ),
    PrivateName(
        "optimum-habana", "optimum.habana.transformers.trainer",
        "GaudiTrainer.get_batch_samples_transformers", "training.trainer: overridden",
    ),
)  # fmt: skip


def missing_names(names: Iterable[PrivateName] = PRIVATE_NAMES) -> list[str]:
    """One line for each name that the installed version does not have.

    `optimum.habana` must be importable (`trial.devices.optimum_habana`) if names of it are asked.
    """
    from importlib.metadata import version

    return [
        f"{name.distribution} {version(name.distribution)} has no {name.module}.{name.name} "
        f"({name.used_by})"
        for name in names
        if not _exists(name)
    ]


def _exists(name: PrivateName) -> bool:
    try:
        found: Any = importlib.import_module(name.module)
    except ModuleNotFoundError:
        return False
    for part in name.name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def skip_optional_imports(packages: Iterable[str]) -> None:
    """Let transformers take `packages` for not installed; trials may still import them.

    To be called before anything else of transformers is imported.
    """
    from transformers.utils import import_utils

    if scan := getattr(import_utils, "create_import_structure_from_path", None):
        # transformers scans its folder of models, and again for the __init__.py in it.
        import_utils.create_import_structure_from_path = lambda path: scan(
            Path(path).parent if Path(path).name == "__init__.py" else path
        )
    for name in packages:
        setattr(import_utils, f"_{name}_available", False)


def patch_trainer(trainer_class: type[Any]) -> None:
    """Replace two functions in the modules of a trainer class and of its base classes.

    `skip_first_batches` by one that keeps the loader's epoch; `_is_peft_model` by one that does not
    parse PEFT's package metadata at every step (1 ms).
    """
    from accelerate import skip_first_batches
    from peft import PeftMixedModel, PeftModel

    def is_peft_model(model: Any) -> bool:
        return isinstance(model, PeftModel | PeftMixedModel)

    skip = keeping_epoch(skip_first_batches)
    for base in trainer_class.__mro__:
        module = sys.modules[base.__module__]
        if getattr(module, "skip_first_batches", None) is skip_first_batches:
            module.__dict__["skip_first_batches"] = skip
        if hasattr(module, "_is_peft_model"):
            module.__dict__["_is_peft_model"] = is_peft_model


def keeping_epoch(skip_first_batches: Callable[..., Any]) -> Callable[..., Any]:
    """Make accelerate's `skip_first_batches` keep the epoch of the loader that it is given.

    accelerate 1.10 returns a loader that counts epochs from 0, so that a run resumed in a later
    epoch would see the data order of the first.
    """

    def skip(dataloader: Any, num_batches: int = 0) -> Any:
        rest = skip_first_batches(dataloader, num_batches)
        if hasattr(dataloader, "iteration"):
            rest.iteration = dataloader.iteration
        return rest

    return skip


def use_one_gpu(arguments: Any) -> None:
    """Keep transformers from wrapping the model in DataParallel, which multiplies the batch size.

    `arguments` are a `TrainingArguments`.
    """
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def reset_accelerate() -> None:
    """Remove the process-wide state of accelerate and of transformers' DeepSpeed integration."""
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    unset_hf_deepspeed_config()
    clear_accelerate_environment()


def clear_accelerate_environment() -> None:
    """Remove the variables that accelerate sets for itself.

    One that is left over turns the next trial of the process into a DeepSpeed trial.
    """
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]


def skip_shared_memory_operator() -> None:
    """Keep DeepSpeed from compiling its shared-memory communication for the CPU."""
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def attention_name(model: Any) -> str:
    """The name of the attention function that a model's layers call."""
    name: str = model.config._attn_implementation
    return name


def text_attention_name(model: Any) -> str:
    """The same of a model's text part, where it has others."""
    name: str = model.config.get_text_config()._attn_implementation
    return name


def set_attention_name(model: Any, name: str) -> None:
    """Let a model's layers call another attention function, by its registered name."""
    model.config._attn_implementation = name


def looks_attention_up(model: Any) -> bool:
    """Whether a model's layers look their attention function up by its name, at every call."""
    return bool(getattr(model, "_supports_attention_backend", False))


def tied_names(model: Any) -> list[str]:
    """Regular expressions of the names of tensors that a model's class may tie to others."""
    return list(getattr(model, "_tied_weights_keys", None) or [])


def is_zero_parameter(parameter: Any) -> bool:
    """Whether DeepSpeed has partitioned a parameter among ranks (ZeRO-3)."""
    return hasattr(parameter, "ds_id")


def whole_size(parameter: Any) -> int:
    """Number of a parameter's values; of one that DeepSpeed has partitioned, those of all ranks."""
    size: int = getattr(parameter, "ds_numel", parameter.numel())
    return size
