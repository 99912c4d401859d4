"""Checks of a trial's model, tokenizer and LoRA targets; of weights only headers are read."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from trial.builtin import MODELS, resolve_model
from trial.config.errors import Problem, nearest
from trial.config.trial_config import TrialConfig
from trial.data.prompts import CHAT_TEMPLATE
from trial.data.readers import BUILTIN, missing
from trial.model import hub
from trial.model.known_shapes import Settings, known_settings, shapes_of
from trial.model.lora_targets import ALL_LINEAR
from trial.model.model_folder import ModelFolder, causal_model_types

MODEL_KEY, TOKENIZER_KEY = "model.name_or_path", "model.tokenizer_name_or_path"
TARGETS_KEY = "lora.target_modules"
MAX_SHOWN_MODULES = 24
MAX_SHOWN_FILES = 3

Modules = Mapping[str, tuple[int, ...]]
"""Shape of a module's weight by the module's name."""

logger = logging.getLogger(__name__)


def model_problems(config: TrialConfig) -> tuple[list[Problem], list[Problem]]:
    """Mistakes in model, tokenizer and targets; in a second list, a known model that is missing.

    The second list concerns hub models whose published sizes are in `known_shapes`: a plan can be
    checked without their files.
    """
    model = config.model
    folder, problems = find_model(model.name_or_path, model.revision, MODEL_KEY)
    tokenizer = folder
    missing_here: list[Problem] = []
    settings = known_settings(model.name_or_path) if folder is None else None
    if settings is not None:
        known = "; its sizes are known, so that a plan can be checked without it"
        missing_here = [replace(p, expected=f"{p.expected}{known}") for p in problems]
        problems = _known_problems(settings, config)
    if model.tokenizer_name_or_path is not None:
        tokenizer, more = find_model(model.tokenizer_name_or_path, model.revision, TOKENIZER_KEY)
        problems += more
    if folder is not None:
        problems += _folder_problems(folder, config)
    if tokenizer is not None:
        problems += _tokenizer_problems(tokenizer, config)
    return problems, missing_here


def _known_problems(settings: Settings, config: TrialConfig) -> list[Problem]:
    """Lengths and targets against the published sizes of a model whose files are not here."""
    weights = shapes_of(settings) or {}
    model_type, positions = settings["model_type"], settings["max_position_embeddings"]
    return [
        *_length_problems(positions, config),
        *_module_problems(_modules(weights), model_type, config),
    ]


def find_model(
    name: str, revision: str | None, key: str, *, ask: bool = True
) -> tuple[ModelFolder | None, list[Problem]]:
    """The folder of a model or tokenizer, if it is here, and what is wrong with its name.

    Args:
        name: a built-in name, a folder or a hub id.
        revision: of a hub id.
        key: the key of the configuration that problems name.
        ask: whether to ask the hub about an id that is not in the local cache.
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
    """Ask the hub about a name that is neither a local folder nor in the cache."""
    reason = hub.unavailable_reason("model", name, revision)
    if reason:
        rule = "an existing model folder, or a hub model (none here, none in the local hub cache)"
        return [Problem(key, f"{rule}; {reason}", repr(name), _no_folder(name, key)[0].near)]
    logger.info("%s will be downloaded from the hub", name)
    return []


def _folder_problems(folder: ModelFolder, config: TrialConfig) -> list[Problem]:
    name = repr(config.model.name_or_path)
    try:
        refusals = folder.refusals()
        model_type = folder.settings()["model_type"]
    except ValueError as error:
        return [Problem(MODEL_KEY, f"a model folder ({error})", name)]
    if refusals:
        return [Problem(MODEL_KEY, rule, name) for rule in refusals]
    positions = folder.max_positions()
    problems = [*_type_problems(model_type, config), *_length_problems(positions, config)]
    if not folder.weight_files():
        rule = f"weights (*.safetensors or pytorch_model*.bin) in {folder.path}"
        return [*problems, Problem(MODEL_KEY, rule, "none")]
    try:
        missing_files = folder.missing_shards()
        modules = _modules(folder.tensors())
    except ValueError as error:
        return [*problems, Problem(MODEL_KEY, f"readable weights ({error})")]
    if missing_files:
        rule = f"every file that the index of {folder.path} names"
        problems.append(
            Problem(MODEL_KEY, rule, f"no {', '.join(missing_files[:MAX_SHOWN_FILES])}")
        )
    return problems + _module_problems(modules, model_type, config)


def _type_problems(model_type: str, config: TrialConfig) -> list[Problem]:
    known = causal_model_types()
    if not known or model_type in known or config.model.trust_remote_code:
        return []
    rule = "a causal language model that the installed transformers knows"
    near = nearest(model_type, sorted(known))
    return [Problem(MODEL_KEY, rule, f"a model of type {model_type!r}", near)]


def _length_problems(positions: int | None, config: TrialConfig) -> list[Problem]:
    if positions is None or config.data.max_length <= positions:
        return []
    rule = f"at most {positions}, the positions of {config.model.name_or_path}"
    return [Problem("data.max_length", rule, str(config.data.max_length))]


def _modules(tensors: Mapping[str, tuple[int, ...]]) -> Modules:
    """Modules that have a weight."""
    ending = ".weight"
    return {
        name.removesuffix(ending): shape for name, shape in tensors.items() if name.endswith(ending)
    }


def _module_problems(modules: Modules, model_type: str, config: TrialConfig) -> list[Problem]:
    """Names in `target_modules` and `modules_to_save` that no module of the model has."""
    if not modules or config.lora.r == 0:
        return []
    targets = config.lora.target_modules
    if isinstance(targets, str):
        problems = _pattern_problems(targets, modules, model_type)
    else:
        problems = _name_problems(TARGETS_KEY, targets, modules)
    saved = (config.lora.model_extra or {}).get("modules_to_save") or []
    # PEFT trains copies of whole blocks too, which have no weight of their own.
    blocks = {
        ".".join(parts[:size]): shape
        for name, shape in modules.items()
        for parts in [name.split(".")]
        for size in range(1, len(parts) + 1)
    }
    return problems + _name_problems("lora.modules_to_save", saved, blocks)


def _name_problems(key: str, names: Iterable[str], modules: Modules) -> list[Problem]:
    # A head that is tied to the embeddings has no weight of its own in the file.
    known = {*modules, "lm_head"}
    last_parts = _last_parts(modules)
    problems = []
    for name in names:
        if not any(module == name or module.endswith(f".{name}") for module in known):
            rule = f"a module of the model: {', '.join(last_parts[:MAX_SHOWN_MODULES])}"
            problems.append(Problem(key, rule, repr(name), nearest(name, last_parts)))
    return problems


def _pattern_problems(pattern: str, modules: Modules, model_type: str) -> list[Problem]:
    """A regular expression that matches no whole module name, as PEFT requires it to."""
    if pattern.lower() == ALL_LINEAR:
        return []
    try:
        matches = re.compile(pattern).fullmatch
    except re.error as error:
        return [Problem(TARGETS_KEY, f"a regular expression ({error})", repr(pattern))]
    # Names in the files may lack the prefix that they have in the loaded model.
    prefixes = ("", "model.", "transformer.", f"{model_type}.", "base_model.")
    if any(matches(prefix + name) for name in (*modules, "lm_head") for prefix in prefixes):
        return []
    last_parts = _last_parts(modules)
    rule = "all-linear, a list of names, or a regular expression that matches whole module names"
    example = next(name for name in modules if name.endswith(tuple(last_parts)))
    return [
        Problem(
            TARGETS_KEY, f"{rule} such as {example}", repr(pattern), nearest(pattern, last_parts)
        )
    ]


def _last_parts(modules: Modules) -> list[str]:
    """Last parts of module names, those of norms left out."""
    return sorted({name.rsplit(".", 1)[-1] for name, shape in modules.items() if len(shape) != 1})


def _tokenizer_problems(folder: ModelFolder, config: TrialConfig) -> list[Problem]:
    model = config.model
    if not folder.has_tokenizer():
        key = TOKENIZER_KEY if model.tokenizer_name_or_path is not None else MODEL_KEY
        rule = f"tokenizer files in {folder.path}, or `tokenizer_name_or_path` beside it"
        return [Problem(key, rule, "none")]
    has_template = config.data.chat_template is not None or folder.has_chat_template()
    if config.data.prompt_format == CHAT_TEMPLATE and not has_template:
        rule = f"a format other than the chat template, which {folder.path} lacks"
        return [Problem("data.prompt_format", rule, repr(CHAT_TEMPLATE))]
    return []
