"""Would this trial start? Model, data, modules and device are looked at before any worker is.

Torch-free, and quick: of the weights only the headers are read.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from trial.builtin import MODELS, resolve_model
from trial.config.errors import ConfigError, Problem, nearest
from trial.config.packing_rules import unpackable_reason
from trial.config.sections import DataConfig
from trial.config.trial_config import TrialConfig
from trial.data.prompts import CHAT_TEMPLATE, format_problem
from trial.data.readers import BUILTIN, missing
from trial.data.split import read_split
from trial.devices.detect import detected_device, has_cuda_device, has_gaudi_software
from trial.devices.optimum_habana import PUBLISHED_CONFIGS
from trial.model import hub
from trial.model.known_shapes import Settings, known_settings, shapes_of
from trial.model.model_folder import ModelFolder, causal_model_types, read_object
from trial.store.reference_ratios import read_ratios

TRACKERS = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}
"""What `report_to` may name, and the package that it needs."""
MODEL_KEY, TOKENIZER_KEY = "model.name_or_path", "model.tokenizer_name_or_path"
TARGETS_KEY = "lora.target_modules"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreflightResult:
    """What keeps a trial from starting: anywhere, and on this machine alone."""

    problems: list[Problem]
    missing_here: list[Problem]
    """A device, its settings on a hub, or a hub model of known architecture, that is not here: a
    plan can do without."""


def check_trial(config: TrialConfig, *, here: bool = True) -> PreflightResult:
    """Look at everything once.

    `here` says whether trials run on this machine: elsewhere, the device is not looked for.
    """
    found = _look_at_model(config)
    problems = [*found.problems, *_data_problems(config), *_deepspeed_problems(config)]
    problems += _compared_problems(config)
    local = [*_device_problems(config), *_tracker_problems(config)] if here else []
    absent = [*found.missing_here, *local]
    (absent if _is_hub_id(config) else problems).extend(_gaudi_config_problems(config))
    return PreflightResult(problems, absent)


def preflight(config: TrialConfig, *, here: bool = True) -> list[Problem]:
    """Everything that would keep a trial from starting; empty when nothing is known to."""
    found = check_trial(config, here=here)
    return [*found.problems, *found.missing_here]


def rank_problems(config: TrialConfig, ranks: int, *, here: bool = True) -> list[Problem]:
    """What keeps a trial from training with so many ranks."""
    guessed = config.device == "auto" and here and detected_device() == "cpu"
    if ranks == 1 or config.zero_stage is not None or not (config.device == "cpu" or guessed):
        return []
    if config.packed and not unpackable_reason(config):
        return []
    rule = (
        f"0, 1, 2 or 3: without DeepSpeed the {ranks} ranks of a trial drift apart on cpu, "
        "unless `resources.pack` packs it"
    )
    return [Problem("zero_stage", rule, "null")]


def _look_at_model(config: TrialConfig) -> PreflightResult:
    model = config.model
    folder, problems = find_model(model.name_or_path, model.revision, MODEL_KEY)
    tokenizer = folder
    absent: list[Problem] = []
    settings = known_settings(model.name_or_path) if folder is None else None
    if settings is not None:
        known = "; its sizes are known, so that a plan can be checked without it"
        absent = [replace(found, expected=f"{found.expected}{known}") for found in problems]
        problems = _known_problems(settings, config)
    if model.tokenizer_name_or_path is not None:
        tokenizer, more = find_model(model.tokenizer_name_or_path, model.revision, TOKENIZER_KEY)
        problems += more
    if folder is not None:
        problems += _folder_problems(folder, config)
    if tokenizer is not None:
        problems += _tokenizer_problems(tokenizer, config)
    return PreflightResult(problems, absent)


def _known_problems(settings: Settings, config: TrialConfig) -> list[Problem]:
    """What published numbers of a model tell that is not here."""
    weights = shapes_of(settings) or {}
    kind, longest = settings["model_type"], settings["max_position_embeddings"]
    return [
        *_length_problems(longest, config),
        *_module_problems(_modules(weights), kind, config),
    ]


def find_model(
    name: str, revision: str | None, key: str, *, ask: bool = True
) -> tuple[ModelFolder | None, list[Problem]]:
    """Where the files of a model or tokenizer are, if here, and what is wrong with its name.

    With `ask` the hub is asked about a name that is not here.
    """
    if name.startswith(BUILTIN) and name not in MODELS:
        rule = f"a built-in model: {', '.join(MODELS)}"
        return None, [Problem(key, rule, repr(name), nearest(name, list(MODELS)))]
    path = Path(resolve_model(name)).expanduser()
    if name.strip() and path.is_dir():
        return ModelFolder(path), []
    if path.is_file():
        return None, [Problem(key, "a model folder", f"{name!r}, which is a file")]
    if not hub.HUB_ID.fullmatch(name):
        return None, _no_folder(name, key)
    snapshot = hub.cached_snapshot(name, revision)
    if snapshot is not None:
        return ModelFolder(snapshot), []
    return None, _hub_problems(name, revision, key) if ask else []


def _no_folder(name: str, key: str) -> list[Problem]:
    found = missing(name, key).problems[0]
    rule = "a model folder that exists, or a hub id (owner/name)"
    return [Problem(key, rule, found.got, found.near)]


def _hub_problems(name: str, revision: str | None, key: str) -> list[Problem]:
    """Ask the hub about a name that is neither a folder here nor in the cache."""
    reason = hub.refusal("model", name, revision)
    if reason:
        rule = "an existing model folder, or a hub model (none here, none in the local hub cache)"
        return [Problem(key, f"{rule}; {reason}", repr(name), _no_folder(name, key)[0].near)]
    logger.info("%s will be downloaded from the hub", name)
    return []


def _folder_problems(folder: ModelFolder, config: TrialConfig) -> list[Problem]:
    try:
        model_type = folder.settings()["model_type"]
    except ValueError as error:
        return [Problem(MODEL_KEY, f"a model folder ({error})", repr(config.model.name_or_path))]
    longest = folder.max_positions()
    problems = [*_type_problems(model_type, config), *_length_problems(longest, config)]
    if not folder.weight_files():
        rule = f"weights (*.safetensors or pytorch_model*.bin) in {folder.path}"
        return [*problems, Problem(MODEL_KEY, rule, "none")]
    try:
        absent = folder.missing_shards()
        modules = _modules(folder.tensors())
    except ValueError as error:
        return [*problems, Problem(MODEL_KEY, f"readable weights ({error})")]
    if absent:
        rule = f"every file that the index of {folder.path} names"
        problems.append(Problem(MODEL_KEY, rule, f"no {', '.join(absent[:3])}"))
    return problems + _module_problems(modules, model_type, config)


def _type_problems(model_type: str, config: TrialConfig) -> list[Problem]:
    known = causal_model_types()
    if not known or model_type in known or config.model.trust_remote_code:
        return []
    rule = "a causal language model that the installed transformers knows"
    near = nearest(model_type, sorted(known))
    return [Problem(MODEL_KEY, rule, f"a model of type {model_type!r}", near)]


def _length_problems(longest: int | None, config: TrialConfig) -> list[Problem]:
    if longest is None or config.data.max_length <= longest:
        return []
    rule = f"at most {longest}, the positions of {config.model.name_or_path}"
    return [Problem("data.max_length", rule, str(config.data.max_length))]


def _modules(tensors: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Modules that have a weight, with its shape."""
    ending = ".weight"
    return {
        name.removesuffix(ending): shape for name, shape in tensors.items() if name.endswith(ending)
    }


def _module_problems(
    modules: dict[str, tuple[int, ...]], model_type: str, config: TrialConfig
) -> list[Problem]:
    """Names in `target_modules` and `modules_to_save` that no module of the model has."""
    if not modules or config.lora.r == 0:
        return []
    targets = config.lora.target_modules
    if isinstance(targets, str):
        problems = _pattern_problems(targets, modules, model_type)
    else:
        problems = _name_problems(TARGETS_KEY, targets, modules)
    saved = (config.lora.model_extra or {}).get("modules_to_save") or []
    return problems + _name_problems("lora.modules_to_save", saved, modules)


def _name_problems(
    key: str, names: Iterable[str], modules: dict[str, tuple[int, ...]]
) -> list[Problem]:
    # Tied to the embeddings, the head has no weight of its own in the file.
    ends = {*modules, "lm_head"}
    tails = sorted({name.rsplit(".", 1)[-1] for name, shape in modules.items() if len(shape) != 1})
    problems = []
    for name in names:
        if not any(end == name or end.endswith(f".{name}") for end in ends):
            rule = f"a module of the model: {', '.join(tails[:24])}"
            problems.append(Problem(key, rule, repr(name), nearest(name, tails)))
    return problems


def _pattern_problems(
    pattern: str, modules: dict[str, tuple[int, ...]], model_type: str
) -> list[Problem]:
    """Whether a regular expression matches any module by its whole name, as PEFT asks."""
    if pattern.lower() == "all-linear":
        return []
    try:
        matches = re.compile(pattern).fullmatch
    except re.error as error:
        return [Problem(TARGETS_KEY, f"a regular expression ({error})", repr(pattern))]
    # Files may lack the prefix that the loaded model puts before its modules.
    prefixes = ("", "model.", "transformer.", f"{model_type}.", "base_model.")
    if any(matches(prefix + name) for name in (*modules, "lm_head") for prefix in prefixes):
        return []
    tails = sorted({name.rsplit(".", 1)[-1] for name, shape in modules.items() if len(shape) != 1})
    rule = "all-linear, a list of names, or a regular expression that matches whole module names"
    example = next(name for name in modules if name.endswith(tuple(tails)))
    return [
        Problem(TARGETS_KEY, f"{rule} such as {example}", repr(pattern), nearest(pattern, tails))
    ]


def _tokenizer_problems(folder: ModelFolder, config: TrialConfig) -> list[Problem]:
    model = config.model
    if not folder.has_tokenizer():
        key = TOKENIZER_KEY if model.tokenizer_name_or_path is not None else MODEL_KEY
        rule = f"tokenizer files in {folder.path}, or `tokenizer_name_or_path` beside it"
        return [Problem(key, rule, "none")]
    if config.data.prompt_format == CHAT_TEMPLATE and not folder.has_chat_template():
        rule = f"a format other than the chat template, which {folder.path} lacks"
        return [Problem("data.prompt_format", rule, repr(CHAT_TEMPLATE))]
    return []


def _data_problems(config: TrialConfig) -> list[Problem]:
    problem = format_problem(config.data.prompt_format)
    # What the rows become has no part in whether they can be read.
    rows_only = config.data.model_copy(
        update={name: DataConfig.model_fields[name].default for name in KEYS_AFTER_READING}
    )
    stamps = tuple(_stamp(path) for path in _files(config.data))
    return [*([problem] if problem else []), *_row_problems(rows_only, stamps)]


KEYS_AFTER_READING = ("prompt_format", "max_length", "max_train_samples", "max_eval_samples")
"""Keys of `data` that have no part in whether its rows can be read."""


def _files(data: DataConfig) -> tuple[str | None, ...]:
    alternatives = data.alternatives if isinstance(data.alternatives, str) else None
    return (data.path, data.eval_path, data.forget_path, alternatives)


def _stamp(path: str | None) -> tuple[int, int]:
    """What changes when a file does."""
    try:
        status = Path(path or "").expanduser().stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=16)
def _row_problems(data: DataConfig, stamps: tuple[tuple[int, int], ...]) -> tuple[Problem, ...]:
    """Read the data as a trial would; `stamps` only tells one state of the files from the next."""
    try:
        read_split(data)
    except ConfigError as error:
        return error.problems
    return ()


def _compared_problems(config: TrialConfig) -> tuple[Problem, ...]:
    try:
        read_ratios(config.evaluation.retain_model)
    except ConfigError as error:
        return error.problems
    return ()


def _deepspeed_problems(config: TrialConfig) -> list[Problem]:
    path = config.deepspeed.config
    if not isinstance(path, str):
        return []
    file = Path(path).expanduser()
    if not file.is_file():
        found = missing(path, "deepspeed.config").problems[0]
        return [Problem("deepspeed.config", "an existing JSON file", found.got, found.near)]
    try:
        read_object(file)
    except ValueError as error:
        return [Problem("deepspeed.config", f"a JSON object ({error})", repr(path))]
    return []


def _is_hub_id(config: TrialConfig) -> bool:
    given = config.gaudi_config
    return isinstance(given, str) and bool(hub.HUB_ID.fullmatch(given)) and not Path(given).exists()


def _gaudi_config_problems(config: TrialConfig) -> list[Problem]:
    """Whether a GaudiConfig by name can be had; only trials on HPU read it."""
    given = config.gaudi_config
    on_hpu = config.device == "hpu" or (config.device == "auto" and has_gaudi_software())
    if not on_hpu or not isinstance(given, str) or given in PUBLISHED_CONFIGS:
        return []
    if _is_hub_id(config):
        reason = "" if hub.cached_snapshot(given, None) else hub.refusal("model", given)
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
    asked = config.training.get("report_to") or ()
    names = [asked] if isinstance(asked, str) else list(asked)
    return [
        Problem("training.report_to", f"an installed package {package!r}", repr(name))
        for name in names
        if (package := TRACKERS.get(name)) and importlib.util.find_spec(package) is None
    ]


_PRESENT: dict[str, tuple[Callable[[], bool], str]] = {
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
    if config.device not in _PRESENT:
        return []
    present, rule = _PRESENT[config.device]
    if present():
        return []
    return [Problem("device", f"{rule}; `auto` takes what there is", repr(config.device))]
