"""The devices a trial can train on, as a table of all that differs between them.

CONTRIBUTING.md says what else a new device needs. Torch is loaded only when a function of an entry
is called.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trial.config import library_arguments
from trial.config.trial_config import TrialConfig
from trial.devices import deepspeed_config, gaudi_release, optimum_habana, peak_memory
from trial.devices.detect import has_gaudi_software
from trial.devices.environment import BEFORE_START

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Device:
    """What is particular to one kind of device."""

    name: str
    """`hpu`, `cuda` or `cpu`."""
    available: Callable[[], bool]
    """Whether this machine has such a device."""
    label: Callable[[], str]
    """The device's name and model, for records and logs."""
    trainer_class: Callable[[], type[Any]]
    """A subclass of `transformers.Trainer`, or that class."""
    arguments_class: Callable[[], type[Any]]
    """A subclass of `transformers.TrainingArguments`, or that class."""
    arguments: Callable[[TrialConfig], dict[str, Any]]
    """Training arguments that the device needs besides the trial's own."""
    ignored_arguments: Callable[[], frozenset[str]]
    """Training arguments without effect on the device; they are left out with a warning."""
    trainer_arguments: Callable[[TrialConfig], dict[str, Any]]
    """Keyword arguments of the trainer's constructor."""
    environment: Callable[[TrialConfig], Mapping[str, str]]
    """Variables that must be set before torch is loaded."""
    reset_peak: Callable[[], None]
    """Start the measurement of peak memory anew."""
    read_peak: Callable[[], int]
    """Peak memory since `reset_peak`, in bytes."""
    synchronise: Callable[[], None]
    """Wait until all work that was queued on the device is done."""
    evaluation_inputs: Callable[[Any], dict[str, Any]]
    """Keyword arguments of the model that the device's trainer adds to every batch."""
    prepare_trainer: Callable[[Any, TrialConfig], None]
    """Called once with a new trainer: corrects it for the device, or logs its settings."""
    repair_checkpointing: Callable[[Any], None]
    """Called with the trainer before training: replaces gradient checkpointing that fails."""
    backend: str
    """Backend of torch.distributed."""
    fixed_shapes: bool
    """Whether each new tensor shape costs a compilation: batches keep their padding then."""
    reads_without_sync: bool
    """Whether reading a tensor's value needs no synchronisation: every step's loss is read then."""
    record: Callable[[Callable[[], Any], Any], tuple[Any, Any]] | None = None
    """Captures the kernels that a function launches, as a graph; None where there are no graphs.

    Takes the function and an earlier graph whose memory pool is shared, or None. Returns the graph,
    whose `replay()` launches the kernels again, and what the function returned."""
    counters: Callable[[], dict[str, float]] = lambda: {}
    """Metrics that the device has counted since `reset_peak`, by name."""


def _do_nothing(*_: Any) -> None:
    return None


def _no_arguments(_: Any = None) -> dict[str, Any]:
    return {}


def _no_names() -> frozenset[str]:
    return frozenset()


def _transformers_trainer() -> type[Any]:
    from transformers import Trainer

    return Trainer


def _transformers_arguments() -> type[Any]:
    from transformers import TrainingArguments

    return TrainingArguments


def _cpu_environment(config: TrialConfig) -> dict[str, str]:
    # Unset, DeepSpeed looks for accelerators and warns that it found none.
    return {"DS_ACCELERATOR": "cpu"}


def _hpu_available() -> bool:
    if not has_gaudi_software():
        return False
    import habana_frameworks.torch.hpu as hpu

    return bool(hpu.device_count())


def _hpu_label() -> str:
    import habana_frameworks.torch.hpu as hpu

    return f"hpu {hpu.get_device_name()}"


def _hpu_arguments(config: TrialConfig) -> dict[str, Any]:
    arguments: dict[str, Any] = {"use_habana": True}
    # Eager by default, as BEFORE_START sets it; the argument's own default is lazy.
    arguments["use_lazy_mode"] = bool(config.training.get("use_lazy_mode"))
    attention = config.model.attn_implementation
    if "attn_implementation" not in config.training and attention is not None:
        # The arguments check their flash_attention_* against this copy of the model's setting.
        arguments["attn_implementation"] = attention
    if config.zero_stage is not None and "gradient_checkpointing_kwargs" not in config.training:
        # With DeepSpeed, GaudiTrainer replaces torch's checkpoint function. Without re-entry, its
        # own calls `tuple` on a single output tensor, which splits that along the batch.
        arguments["gradient_checkpointing_kwargs"] = {"use_reentrant": True}
    return arguments


def _hpu_environment(config: TrialConfig) -> dict[str, str]:
    eager = BEFORE_START["hpu"]
    return {**eager, "PT_HPU_LAZY_MODE": "1"} if config.training.get("use_lazy_mode") else eager


def _hpu_trainer_arguments(config: TrialConfig) -> dict[str, Any]:
    found = optimum_habana.gaudi_config(config.gaudi_config)
    if config.training["optim"] not in deepspeed_config.ADAMW_ARGUMENTS:
        # GaudiTrainer would take Habana's AdamW whatever `optim` says.
        found.use_fused_adam = False
    return {"gaudi_config": found}


def _hpu_log_settings(trainer: Any, config: TrialConfig) -> None:
    """Log the settings and the tensor types that the trial trains with."""
    adapter = gaudi_release.dtype_names(p for p in trainer.model.parameters() if p.requires_grad)
    base = gaudi_release.dtype_names(p for p in trainer.model.parameters() if not p.requires_grad)
    for line in gaudi_release.settings_lines(config, adapter, base or adapter):
        logger.info("%s", line)


def _hpu_compilation_counter() -> Any:
    """Habana's counter of graph compilations; None where the installed release has none."""
    try:
        from habana_frameworks.torch.hpu.metrics import metric_global
    except ImportError:
        return None
    return metric_global("graph_compilation")


def _hpu_counters() -> dict[str, float]:
    counter = _hpu_compilation_counter()
    return {} if counter is None else gaudi_release.compilation_metrics(dict(counter.stats()))


def _hpu_reset_peak() -> None:
    import habana_frameworks.torch.hpu as hpu

    hpu.reset_peak_memory_stats()
    if (counter := _hpu_compilation_counter()) is not None:
        counter.reset()


def _hpu_read_peak() -> int:
    import habana_frameworks.torch.hpu as hpu

    return int(hpu.max_memory_allocated())


def _hpu_synchronise() -> None:
    import habana_frameworks.torch.hpu as hpu

    hpu.synchronize()


def _cuda_available() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _cuda_label() -> str:
    import torch

    return f"cuda {torch.cuda.get_device_name()}"


def _cuda_reset_peak() -> None:
    import torch

    torch.cuda.reset_peak_memory_stats()


def _cuda_read_peak() -> int:
    import torch

    return int(torch.cuda.max_memory_allocated())


def _cuda_synchronise() -> None:
    import torch

    torch.cuda.synchronize()


def _cuda_record(body: Callable[[], Any], earlier: Any) -> tuple[Any, Any]:
    import torch

    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    pool = None if earlier is None else earlier.pool()
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = body()
    except BaseException:
        # A failed capture leaves its own stream set as the current one.
        torch.cuda.set_stream(stream)
        raise
    return graph, result


DEVICES: dict[str, Device] = {
    "hpu": Device(
        name="hpu",
        available=_hpu_available,
        label=_hpu_label,
        trainer_class=optimum_habana.trainer_class,
        arguments_class=optimum_habana.arguments_class,
        arguments=_hpu_arguments,
        ignored_arguments=_no_names,
        trainer_arguments=_hpu_trainer_arguments,
        environment=_hpu_environment,
        reset_peak=_hpu_reset_peak,
        read_peak=_hpu_read_peak,
        synchronise=_hpu_synchronise,
        evaluation_inputs=optimum_habana.evaluation_inputs,
        prepare_trainer=_hpu_log_settings,
        repair_checkpointing=optimum_habana.repair_lazy_checkpointing,
        backend="hccl",
        fixed_shapes=True,
        reads_without_sync=False,
        counters=_hpu_counters,
    ),
    "cuda": Device(
        name="cuda",
        available=_cuda_available,
        label=_cuda_label,
        trainer_class=_transformers_trainer,
        arguments_class=_transformers_arguments,
        # transformers drops NaN losses from its log by default; a diverged trial must show.
        arguments=lambda config: {"logging_nan_inf_filter": False},
        ignored_arguments=library_arguments.gaudi_only_arguments,
        trainer_arguments=_no_arguments,
        environment=_no_arguments,
        reset_peak=_cuda_reset_peak,
        read_peak=_cuda_read_peak,
        synchronise=_cuda_synchronise,
        evaluation_inputs=_no_arguments,
        prepare_trainer=_do_nothing,
        repair_checkpointing=_do_nothing,
        backend="nccl",
        fixed_shapes=False,
        reads_without_sync=False,
        record=_cuda_record,
    ),
    "cpu": Device(
        name="cpu",
        available=lambda: True,
        label=lambda: "cpu",
        trainer_class=optimum_habana.trainer_class,
        arguments_class=optimum_habana.arguments_class,
        arguments=lambda config: optimum_habana.off_device_arguments(),
        ignored_arguments=lambda: optimum_habana.HPU_ONLY_ARGUMENTS,
        trainer_arguments=lambda config: {"gaudi_config": optimum_habana.gaudi_config({})},
        environment=_cpu_environment,
        reset_peak=peak_memory.reset_peak,
        read_peak=peak_memory.read_peak,
        synchronise=_do_nothing,
        evaluation_inputs=optimum_habana.evaluation_inputs,
        prepare_trainer=optimum_habana.restore_autocast,
        repair_checkpointing=optimum_habana.repair_checkpointing,
        backend="gloo",
        fixed_shapes=False,
        reads_without_sync=True,
    ),
}
"""By name, in the order in which `auto` tries them."""


def select_device(name: str) -> Device:
    """The device called `name`; `auto` selects the first that this machine has.

    Raises:
        ValueError: this machine has no such device.
    """
    if name == "auto":
        return next(device for device in DEVICES.values() if device.available())
    if name not in DEVICES:
        raise ValueError(f"device: must be auto or one of {', '.join(DEVICES)}, got {name!r}")
    device = DEVICES[name]
    if not device.available():
        raise ValueError(f"device: this machine has no {name}; `auto` takes what there is")
    return device


def apply_environment(variables: Mapping[str, str]) -> None:
    """Set environment variables that are not set yet.

    Raises:
        ValueError: one has another value, which is too late to change in a running process.
    """
    for name, value in variables.items():
        if os.environ.setdefault(name, value) != value:
            raise ValueError(
                f"{name} is {os.environ[name]!r} in the environment, this trial needs {value!r}"
            )
