"""Loads the base model and its tokenizer, and attaches the LoRA adapter."""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trial.builtin import resolve_model
from trial.config.errors import ConfigError, Problem
from trial.config.sections import LoraSection, ModelConfig
from trial.config.trial_config import TrialConfig
from trial.devices.compat import whole_size
from trial.devices.deepspeed_config import wants_bf16
from trial.model.adapter_checks import (
    refuse_idle_keys,
    refuse_unknown_names,
    refuse_unknown_tokens,
)
from trial.model.hub import HUB_ID
from trial.model.known_faults import known_faults
from trial.model.model_folder import ModelFolder

if TYPE_CHECKING:
    from trial.model.dropout.lora_dropout import BatchPositions

WEIGHTS = ("*.safetensors", "*.bin")
BLOCK = 1 << 16
"""Bytes of a block that `model_hash` reads."""
BLOCKS = 16
"""Blocks of each weight file that it reads."""
MAX_LISTED = 3
"""Names of weights in a message."""
logger = logging.getLogger(__name__)


def is_local(model: ModelConfig) -> bool:
    """Whether model and tokenizer are both local folders."""
    return all(
        Path(resolve_model(name)).expanduser().is_dir()
        for name in (model.name_or_path, model.tokenizer_name_or_path or model.name_or_path)
    )


def pretrained_path(name_or_path: str) -> str:
    """The argument of `from_pretrained`: an absolute folder, or a hub id."""
    path = Path(resolve_model(name_or_path)).expanduser()
    return str(path.resolve()) if path.is_dir() else name_or_path


def load_tokenizer(model: ModelConfig) -> Any:
    """Load the tokenizer; where it has no pad token, eos becomes one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        pretrained_path(model.tokenizer_name_or_path or model.name_or_path),
        **source_arguments(model),
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(
    model: ModelConfig, attn_implementation: str | None, *, without_weights: bool = False
) -> Any:
    """Load the base model, with the key-value cache off.

    Args:
        model: The `model` section of the trial.
        attn_implementation: Of transformers; None: the model's own default.
        without_weights: Read names and shapes of the weights alone; all lie on the meta device.

    Raises:
        ValueError: there is no such folder, and the name is no hub id.
        ConfigError: what is there is no whole causal language model, or transformers computes it
            wrongly.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if not is_local(model) and not HUB_ID.fullmatch(model.name_or_path):
        raise ValueError(f"model.name_or_path: no such folder: {model.name_or_path!r}")
    folder = ModelFolder(_model_folder(model.name_or_path, model.revision))
    if rules := folder.refusals():
        raise ConfigError(_model_problem(rule, model) for rule in rules)
    extra: dict[str, Any] = {}
    if attn_implementation:
        extra["attn_implementation"] = attn_implementation
    extra |= {"torch_dtype": getattr(torch, model.dtype), "output_loading_info": True}
    if without_weights and (state := _names_and_shapes(folder)):
        base, loading = _load_without_weights(model, state, extra)
    else:
        path = pretrained_path(model.name_or_path)
        source = source_arguments(model)
        base, loading = AutoModelForCausalLM.from_pretrained(path, **extra, **source)
    _refuse_incomplete(base, loading, model)
    if problems := known_faults(base, model):
        raise ConfigError(problems)
    base.config.use_cache = False
    return base


def _names_and_shapes(folder: ModelFolder) -> dict[str, Any]:
    """The tensors of a checkpoint on the meta device, by name; empty where there is none."""
    from transformers.modeling_utils import load_state_dict

    state: dict[str, Any] = {}
    for file in folder.checkpoint_files():
        state |= load_state_dict(str(file), map_location="meta")
    return state


def _load_without_weights(
    model: ModelConfig, state: dict[str, Any], extra: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """What `AutoModelForCausalLM.from_pretrained` returns, with all weights on the meta device.

    With a path it would read the values of all weights even for that device.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    path, source = pretrained_path(model.name_or_path), source_arguments(model)
    config = AutoConfig.from_pretrained(path, **source)
    with torch.device("meta"):
        kind = type(
            AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
        )
    loaded: tuple[Any, dict[str, Any]] = kind.from_pretrained(
        None, config=config, state_dict=state, device_map={"": "meta"}, **extra
    )
    with suppress(OSError):
        # A model without the file gets its generation settings from `config.json`.
        loaded[0].generation_config = GenerationConfig.from_pretrained(path, **source)
    return loaded


def _model_problem(rule: str, model: ModelConfig) -> Problem:
    return Problem("model.name_or_path", rule, repr(model.name_or_path))


def _refuse_incomplete(base: Any, loading: dict[str, Any], model: ModelConfig) -> None:
    """Refuse a model of which a part would be trained with random weights, or sees the future.

    Args:
        base: The loaded model.
        loading: Names that `from_pretrained` missed in the weight files, and that it did not use.
        model: The `model` section of the trial.

    Raises:
        ConfigError: a parameter is in no weight file, or attention is not causal.
    """
    names = dict(base.named_parameters(remove_duplicate=False))
    missing = {name for name in loading["missing_keys"] if name in names}
    loaded = {id(parameter) for name, parameter in names.items() if name not in missing}
    # Tied parameters are in the files under one of their names.
    if absent := sorted(name for name in missing if id(names[name]) not in loaded):
        kind = type(base).__name__
        rule = f"weights of a whole {kind}: {_listed(absent)} would be random"
        if unused := sorted(loading["unexpected_keys"]):
            rule += f"; {_listed(unused)} would not be used"
        raise ConfigError([_model_problem(rule, model)])
    encoders = [part for part in base.modules() if getattr(part, "is_decoder", None) is False]
    if encoders and not base.config.is_decoder:
        rule = (
            f"a causal language model: in {type(base).__name__} every token sees the ones after it "
            "(`is_decoder` in config.json is false)"
        )
        raise ConfigError([_model_problem(rule, model)])


def _listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more} more" if more > 0 else "")


def source_arguments(model: ModelConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained` on revision, remote code and network."""
    if model.trust_remote_code:
        logger.warning("running Python files that come with %s", model.name_or_path)
    arguments: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if model.revision is not None:
        arguments["revision"] = model.revision
    if is_local(model):
        arguments["local_files_only"] = True
    return arguments


def lora_config(lora: LoraSection) -> Any:
    """PEFT's `LoraConfig` with the keys of a trial's `lora` section, as given."""
    from peft import LoraConfig

    return LoraConfig(**{**lora.model_dump(), "task_type": "CAUSAL_LM"})


def attach_adapter(
    base: Any,
    config: TrialConfig,
    positions: BatchPositions,
    *,
    start: Callable[[Any], None] | None = None,
    settings: Any = None,
) -> Any:
    """The model to train: `base` with a new float32 adapter, or `base` itself for `r: 0`.

    All that is trained is in float32: also `modules_to_save`, biases, and for `r: 0` every weight.

    Draws from torch's global generator: seed it first. The adapter's dropout mask is hashed from
    `positions`, which the trainer sets for each batch.

    Args:
        base: The base model.
        config: The trial.
        positions: Of the current batch's rows and columns.
        start: Called with the PEFT model to replace the adapter's initial values.
        settings: PEFT's `LoraConfig`, where it is not the one that `config.lora` describes.
    """
    if config.training.get("gradient_checkpointing"):
        # Checkpointed blocks need an input that requires a gradient; a frozen embedding gives none.
        base.enable_input_require_grads()
    if not config.lora.r:
        return _hold_in_float32(base, config)
    from peft import get_peft_model

    from trial.model.dropout.lora_dropout import install_hash_dropout

    without_weights = next(base.parameters()).is_meta
    settings = settings or lora_config(config.lora)
    refuse_unknown_tokens(base, config.lora)
    refuse_unknown_names(base, config.lora)
    model = get_peft_model(base, settings, low_cpu_mem_usage=without_weights)
    refuse_idle_keys(model, config.lora)
    if start is not None:
        start(model)
    install_hash_dropout(model, positions)
    return _hold_in_float32(model, config)


def _hold_in_float32(model: Any, config: TrialConfig) -> Any:
    """The model with its trained weights in float32, unless DeepSpeed does so itself."""
    if config.zero_stage is None or not wants_bf16(config):
        from trial.model.float32_weights import hold_in_float32

        hold_in_float32(model)
    return model


_LEAVES_BASE = {
    "alpha_pattern", "ensure_weight_tying", "exclude_modules", "init_lora_weights",
    "layers_pattern", "layers_to_transform", "lora_bias", "rank_pattern", "use_dora",
}  # fmt: skip
"""Fields of `LoraConfig`, beside those of the section, that add to the base model and change none
of its modules and weights. KaSA takes a part off the weights; `layer_replication` adds layers."""


def unload_restores_base(config: TrialConfig) -> bool:
    """Whether unloading the adapter leaves the base model with the same bits as before."""
    lora = config.lora
    given = {
        name
        for name, value in (lora.model_extra or {}).items()
        if value is not None and value is not False
    }
    return bool(
        lora.r
        and lora.bias == "none"
        and given <= _LEAVES_BASE
        # Other initialisations (PiSSA, OLoRA, CorDA, LoftQ) write into the base weights.
        and isinstance((lora.model_extra or {}).get("init_lora_weights", True), bool)
        and config.zero_stage != 3
        and not config.training.get("gradient_checkpointing")
        and not config.training.get("torch_compile")
    )


def count_parameters(model: Any) -> tuple[int, int]:
    """Numbers of trainable and of all parameters; under ZeRO-3 of all partitions."""
    trainable = total = 0
    for parameter in model.parameters():
        size = whole_size(parameter)
        total += size
        trainable += size if parameter.requires_grad else 0
    return trainable, total


def model_hash(name_or_path: str, revision: str | None = None) -> str:
    """A hash that tells base models apart and is the same for a copied folder: 16 hex digits.

    It covers `config.json` without its own path, and of each weight file the name, the size and 16
    blocks of 64 KiB, evenly spaced: cheap at any size, but no protection against forgery.
    """
    folder = _model_folder(name_or_path, revision)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for file in sorted(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        digest.update(file.name.encode())
        _hash_blocks(file, digest)
    return digest.hexdigest()[:16]


def _model_folder(name_or_path: str, revision: str | None) -> Path:
    path = Path(pretrained_path(name_or_path))
    if path.is_dir():
        return path
    from transformers.utils import cached_file

    file = cached_file(name_or_path, "config.json", revision=revision)
    if file is None:
        raise ValueError(f"model.name_or_path: {name_or_path} has no config.json")
    return Path(file).parent


def _hash_blocks(file: Path, digest: Any) -> None:
    size = file.stat().st_size
    digest.update(struct.pack("<q", size))
    with open(file, "rb") as stream:
        for part in range(BLOCKS):
            stream.seek(max(0, size - BLOCK) * part // (BLOCKS - 1))
            digest.update(stream.read(BLOCK))
