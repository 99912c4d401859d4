"""The devices a trial can train on, as a table: all that differs between them stands here.

Adding a device is one entry. Nothing here loads torch until a function of an entry is called.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trial.config import library_arguments
from trial.config.trial_config import TrialConfig
from trial.devices import gaudi_release, optimum_habana, peak_memory
from trial.devices.detect import has_gaudi_software
from trial.devices.environment import BEFORE_START

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Device:
    """What one kind of device needs; every function is small and does one thing."""

    name: str
    available: Callable[[], bool]
    label: Callable[[], str]
    """The device as a person knows it."""
    trainer_class: Callable[[], type[Any]]
    arguments_class: Callable[[], type[Any]]
    arguments: Callable[[TrialConfig], dict[str, Any]]
    """Arguments on top of the trial's own."""
    ignored: Callable[[], frozenset[str]]
    """Names of arguments that mean nothing here; they are left out, and the log says so."""
    trainer_arguments: Callable[[TrialConfig], dict[str, Any]]
    """Keyword arguments of the trainer itself."""
    environment: Callable[[TrialConfig], Mapping[str, str]]
    """Variables that must be set before torch is loaded."""
    reset_peak: Callable[[], None]
    read_peak: Callable[[], int]
    """Bytes at the highest since `reset_peak`."""
    synchronise: Callable[[], None]
    """Wait until the device has done what it was given."""
    evaluation_inputs: Callable[[Any], dict[str, Any]]
    """What the trainer adds to its inputs besides the batch."""
    mend_trainer: Callable[[Any, TrialConfig], None]
    """What a new trainer needs before it trains, or what is to be said of it."""
    mend_checkpointing: Callable[[Any], None]
    """Undo what the trainer has done to gradient checkpointing, where that fails."""
    backend: str
    """Communication between ranks."""
    fixed_shapes: bool
    """Whether a new shape costs a compilation: batches are never trimmed then."""
    free_reads: bool
    """Whether reading a tensor's value waits for nothing: losses are checked at every step then."""
    record: Callable[[Callable[[], Any], Any], tuple[Any, Any]] | None = None
    """Records what a function launches, in the memory of an earlier recording if one is given.

    Returns the recording, whose `replay()` launches it again, and what the function returned."""
    counters: Callable[[], dict[str, float]] = lambda: {}
    """What the device has counted since `reset_peak`, by the name of a metric."""


def _leave(*_: Any) -> None:
    return None


def _none(_: Any = None) -> dict[str, Any]:
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
    wanted: dict[str, Any] = {"use_habana": True}
    # Eager unless asked for: the argument's own default is lazy, BEFORE_START's is eager.
    wanted["use_lazy_mode"] = bool(config.training.get("use_lazy_mode"))
    attention = config.model.attn_implementation
    if "attn_implementation" not in config.training and attention is not None:
        # The arguments check their flash_attention_* against this copy of the model's setting.
        wanted["attn_implementation"] = attention
    if config.zero_stage is not None and "gradient_checkpointing_kwargs" not in config.training:
        # GaudiTrainer gives DeepSpeed a checkpointing of its own; without re-entry it cuts the one
        # tensor that comes back along its batch.
        wanted["gradient_checkpointing_kwargs"] = {"use_reentrant": True}
    return wanted


def _hpu_environment(config: TrialConfig) -> dict[str, str]:
    usual = BEFORE_START["hpu"]
    return {**usual, "PT_HPU_LAZY_MODE": "1"} if config.training.get("use_lazy_mode") else usual


def _hpu_trainer_arguments(config: TrialConfig) -> dict[str, Any]:
    return {"gaudi_config": optimum_habana.gaudi_config(config.gaudi_config)}


def _hpu_tell(trainer: Any, config: TrialConfig) -> None:
    """Say in the trial's log with which settings and types it trains."""
    adapter = gaudi_release.types_of(p for p in trainer.model.parameters() if p.requires_grad)
    base = gaudi_release.types_of(p for p in trainer.model.parameters() if not p.requires_grad)
    for line in gaudi_release.settings(config, adapter, base or adapter):
        logger.info("%s", line)


def _hpu_compilation() -> Any:
    """The bridge's own count of compiled graphs; None where it keeps none."""
    try:
        from habana_frameworks.torch.hpu.metrics import metric_global
    except ImportError:
        return None
    return metric_global("graph_compilation")


def _hpu_counters() -> dict[str, float]:
    found = _hpu_compilation()
    return {} if found is None else gaudi_release.compilation(dict(found.stats()))


def _hpu_reset_peak() -> None:
    import habana_frameworks.torch.hpu as hpu

    hpu.reset_peak_memory_stats()
    if (compilation := _hpu_compilation()) is not None:
        compilation.reset()


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
            found = body()
    except BaseException:
        # A recording that ends badly leaves its own stream behind as the current one.
        torch.cuda.set_stream(stream)
        raise
    return graph, found


DEVICES: dict[str, Device] = {
    "hpu": Device(
        name="hpu",
        available=_hpu_available,
        label=_hpu_label,
        trainer_class=optimum_habana.trainer_class,
        arguments_class=optimum_habana.arguments_class,
        arguments=_hpu_arguments,
        ignored=_no_names,
        trainer_arguments=_hpu_trainer_arguments,
        environment=_hpu_environment,
        reset_peak=_hpu_reset_peak,
        read_peak=_hpu_read_peak,
        synchronise=_hpu_synchronise,
        evaluation_inputs=optimum_habana.evaluation_inputs,
        mend_trainer=_hpu_tell,
        mend_checkpointing=optimum_habana.mend_lazy_checkpointing,
        backend="hccl",
        fixed_shapes=True,
        free_reads=False,
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
        ignored=library_arguments.gaudi_only_arguments,
        trainer_arguments=_none,
        environment=_none,
        reset_peak=_cuda_reset_peak,
        read_peak=_cuda_read_peak,
        synchronise=_cuda_synchronise,
        evaluation_inputs=_none,
        mend_trainer=_leave,
        mend_checkpointing=_leave,
        backend="nccl",
        fixed_shapes=False,
        free_reads=False,
        record=_cuda_record,
    ),
    "cpu": Device(
        name="cpu",
        available=lambda: True,
        label=lambda: "cpu",
        trainer_class=optimum_habana.trainer_class,
        arguments_class=optimum_habana.arguments_class,
        arguments=lambda config: optimum_habana.off_device_arguments(),
        ignored=lambda: optimum_habana.DEVICE_ONLY,
        trainer_arguments=lambda config: {"gaudi_config": optimum_habana.gaudi_config({})},
        environment=_cpu_environment,
        reset_peak=peak_memory.reset_peak,
        read_peak=peak_memory.read_peak,
        synchronise=_leave,
        evaluation_inputs=optimum_habana.evaluation_inputs,
        mend_trainer=optimum_habana.mend_trainer,
        mend_checkpointing=optimum_habana.mend_checkpointing,
        backend="gloo",
        fixed_shapes=False,
        free_reads=True,
    ),
}
"""In the order in which `auto` takes them."""


def pick(name: str) -> Device:
    """The device called `name`; `auto` takes the first there is.

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


def apply_environment(wanted: Mapping[str, str]) -> None:
    """Set variables that nobody has set.

    Raises:
        ValueError: one is set to something else, which a running process cannot mend.
    """
    for name, value in wanted.items():
        if os.environ.setdefault(name, value) != value:
            raise ValueError(
                f"{name} is {os.environ[name]!r} in the environment, this trial needs {value!r}"
            )
