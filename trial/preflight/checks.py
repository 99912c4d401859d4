"""Checks whether a trial could start: model, data, device and packages, before any worker does.

Torch-free and quick.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from trial.config.errors import ConfigError, Problem, nearest
from trial.config.packing_rules import unpackable_reason
from trial.config.sections import DataConfig
from trial.config.trial_config import TrialConfig
from trial.data.prompts import format_problem
from trial.data.readers import missing
from trial.data.split import read_split
from trial.data.text.template_file import template_problems
from trial.devices.deepspeed_config import optimizer_problems
from trial.devices.detect import detected_device, has_cuda_device, has_gaudi_software
from trial.devices.optimum_habana import PUBLISHED_CONFIGS
from trial.model import hub
from trial.model.model_folder import read_object
from trial.preflight.model_checks import model_problems
from trial.store.reference_ratios import read_ratios

TRACKERS = {
    **{
        name: name
        for name in (
            "clearml",
            "codecarbon",
            "comet_ml",
            "dagshub",
            "dvclive",
            "mlflow",
            "neptune",
            "swanlab",
            "tensorboard",
            "trackio",
            "wandb",
        )
    },
    "azure_ml": "azureml",
    "flyte": "flytekit",
}
"""Values of `training.report_to` and the package that each needs."""

KEYS_AFTER_READING = (
    *("prompt_format", "chat_template"),
    *("max_length", "max_train_samples", "max_eval_samples"),
)
"""Keys of `data` that apply once its rows are read, so do not decide whether these can be read."""


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """What keeps a trial from starting: on any machine, and on this one alone."""

    problems: list[Problem]
    missing_here: list[Problem]
    """A device, a tracker, a GaudiConfig on the hub, or a hub model of known sizes that is not on
    this machine: a plan can be checked without them."""


def check_trial(config: TrialConfig, *, here: bool = True) -> PreflightResult:
    """Run every check once.

    `here` says whether trials run on this machine: elsewhere, its devices and packages do not
    matter.
    """
    problems, missing_here = model_problems(config)
    problems += [problem for check in CHECKS for problem in check(config)]
    if here:
        missing_here += [problem for check in LOCAL_CHECKS for problem in check(config)]
    gaudi_config = missing_here if _gaudi_config_is_hub_id(config) else problems
    gaudi_config += _gaudi_config_problems(config)
    return PreflightResult(problems, missing_here)


def preflight(config: TrialConfig, *, here: bool = True) -> list[Problem]:
    """Everything that is known to keep a trial from starting on this machine."""
    result = check_trial(config, here=here)
    return [*result.problems, *result.missing_here]


def rank_problems(config: TrialConfig, ranks: int, *, here: bool = True) -> list[Problem]:
    """Why a trial cannot train with `ranks` ranks; `here` as in `check_trial`."""
    detected_cpu = config.device == "auto" and here and detected_device() == "cpu"
    if ranks == 1 or config.zero_stage is not None or not (config.device == "cpu" or detected_cpu):
        return []
    if config.packed and not unpackable_reason(config):
        return []
    rule = (
        f"0, 1, 2 or 3: without DeepSpeed the {ranks} ranks of a trial drift apart on cpu, "
        "unless `resources.pack` packs it"
    )
    return [Problem("zero_stage", rule, "null")]


def _data_problems(config: TrialConfig) -> list[Problem]:
    """A wrong prompt format, and whatever keeps the data from being read as rows."""
    unknown = format_problem(config.data.prompt_format)
    problems = [*([unknown] if unknown else []), *template_problems(config.data.chat_template)]
    rows_only = config.data.model_copy(
        update={name: DataConfig.model_fields[name].default for name in KEYS_AFTER_READING}
    )
    versions = tuple(_file_version(path) for path in _data_files(config.data))
    return [*problems, *_row_problems(rows_only, versions)]


def _data_files(data: DataConfig) -> tuple[str | None, ...]:
    alternatives = data.alternatives if isinstance(data.alternatives, str) else None
    return (data.path, data.eval_path, data.forget_path, alternatives)


def _file_version(path: str | None) -> tuple[int, int]:
    """Modification time in nanoseconds and size in bytes; zeros where there is no file."""
    try:
        status = Path(path or "").expanduser().stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _row_problems(data: DataConfig, versions: tuple[tuple[int, int], ...]) -> tuple[Problem, ...]:
    """Read the data as a trial would; `versions` of its files only serve as a cache key."""
    try:
        read_split(data)
    except ConfigError as error:
        return error.problems
    return ()


def _retain_model_problems(config: TrialConfig) -> Sequence[Problem]:
    """Truth ratios of `evaluation.retain_model` that cannot be read."""
    try:
        read_ratios(config.evaluation.retain_model)
    except ConfigError as error:
        return error.problems
    return ()


def _deepspeed_problems(config: TrialConfig) -> list[Problem]:
    """A DeepSpeed configuration file that cannot be read, or names another optimizer."""
    path = config.deepspeed.config
    if not isinstance(path, str):
        return optimizer_problems(config, path or {})
    file = Path(path).expanduser()
    if not file.is_file():
        found = missing(path, "deepspeed.config").problems[0]
        return [Problem("deepspeed.config", "an existing JSON file", found.got, found.near)]
    try:
        return optimizer_problems(config, read_object(file))
    except ValueError as error:
        return [Problem("deepspeed.config", f"a JSON object ({error})", repr(path))]


def _gaudi_config_is_hub_id(config: TrialConfig) -> bool:
    given = config.gaudi_config
    return isinstance(given, str) and bool(hub.HUB_ID.fullmatch(given)) and not Path(given).exists()


def _gaudi_config_problems(config: TrialConfig) -> list[Problem]:
    """A GaudiConfig name that cannot be loaded; only trials on HPU read it."""
    given = config.gaudi_config
    on_hpu = config.device == "hpu" or (config.device == "auto" and has_gaudi_software())
    if not on_hpu or not isinstance(given, str) or given in PUBLISHED_CONFIGS:
        return []
    if _gaudi_config_is_hub_id(config):
        reason = "" if hub.cached_snapshot(given, None) else hub.unavailable_reason("model", given)
        rule = f"a folder, a mapping, {', '.join(PUBLISHED_CONFIGS)} or another hub id; {reason}"
        return [Problem("gaudi_config", rule, repr(given))] if reason else []
    if Path(given).expanduser().joinpath("gaudi_config.json").is_file():
        return []
    rule = (
        f"a mapping, {', '.join(PUBLISHED_CONFIGS)}, a hub id, or a folder with gaudi_config.json"
    )
    return [Problem("gaudi_config", rule, repr(given), nearest(given, list(PUBLISHED_CONFIGS)))]


def _tracker_problems(config: TrialConfig) -> list[Problem]:
    """Trackers whose package is not installed: every trial would fail at its first step."""
    report_to = config.training.get("report_to") or ()
    names = [report_to] if isinstance(report_to, str) else list(report_to)
    return [
        Problem("training.report_to", f"an installed package {package!r}", repr(name))
        for name in names
        if (package := TRACKERS.get(name)) and importlib.util.find_spec(package) is None
    ]


_DETECTION: dict[str, tuple[Callable[[], bool], str]] = {
    "cuda": (
        has_cuda_device,
        "a CUDA device (no NVIDIA device file, or hidden by CUDA_VISIBLE_DEVICES)",
    ),
    "hpu": (
        has_gaudi_software,
        "a Gaudi device with its software (habana_frameworks is not installed)",
    ),
}


def _device_problems(config: TrialConfig) -> list[Problem]:
    """A device that is asked for by name and is not on this machine."""
    if config.device not in _DETECTION:
        return []
    is_present, rule = _DETECTION[config.device]
    if is_present():
        return []
    return [Problem("device", f"{rule}; `auto` takes what there is", repr(config.device))]


Check = Callable[[TrialConfig], Sequence[Problem]]
CHECKS: tuple[Check, ...] = (_data_problems, _deepspeed_problems, _retain_model_problems)
"""Checks whose answer is the same on every machine."""
LOCAL_CHECKS: tuple[Check, ...] = (_device_problems, _tracker_problems)
"""Checks of the machine that trains."""
