"""The frozen base model, its tokenizer and the adapter on top."""

from __future__ import annotations

import hashlib
import json
import logging
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trial.builtin import resolve_model
from trial.config.sections import LoraSection, ModelConfig
from trial.config.trial_config import TrialConfig
from trial.model.hub import HUB_ID

if TYPE_CHECKING:
    from trial.model.lora_dropout import BatchPositions

WEIGHTS = ("*.safetensors", "*.bin")
BLOCK = 1 << 16
SAMPLES = 16
logger = logging.getLogger(__name__)


def is_local(model: ModelConfig) -> bool:
    """Whether model and tokenizer both lie on this machine."""
    return all(
        Path(resolve_model(name)).expanduser().is_dir()
        for name in (model.name_or_path, model.tokenizer_name_or_path or model.name_or_path)
    )


def location(name_or_path: str) -> str:
    """What `from_pretrained` is given."""
    path = Path(resolve_model(name_or_path)).expanduser()
    return str(path.resolve()) if path.is_dir() else name_or_path


def load_tokenizer(model: ModelConfig) -> Any:
    """The tokenizer, with a pad token: eos where it has none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        location(model.tokenizer_name_or_path or model.name_or_path), **_origin(model)
    )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(model: ModelConfig, attn_implementation: str | None) -> Any:
    """The base model with its weights, caching of keys and values off.

    Raises:
        ValueError: there is no such model; says where it was looked for.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if not is_local(model) and not HUB_ID.fullmatch(model.name_or_path):
        raise ValueError(f"model.name_or_path: no such folder: {model.name_or_path!r}")
    extra = {"attn_implementation": attn_implementation} if attn_implementation else {}
    base = AutoModelForCausalLM.from_pretrained(
        location(model.name_or_path),
        torch_dtype=getattr(torch, model.dtype),
        **extra,
        **_origin(model),
    )
    base.config.use_cache = False
    return base


def _origin(model: ModelConfig) -> dict[str, Any]:
    if model.trust_remote_code:
        logger.warning("running Python files that come with %s", model.name_or_path)
    origin: dict[str, Any] = {"trust_remote_code": model.trust_remote_code}
    if model.revision is not None:
        origin["revision"] = model.revision
    if is_local(model):
        origin["local_files_only"] = True
    return origin


def lora_config(lora: LoraSection) -> Any:
    """PEFT's `LoraConfig` with the keys of a trial's `lora` section, as given."""
    from peft import LoraConfig

    return LoraConfig(**lora.model_dump(), task_type="CAUSAL_LM")


def attach_adapter(base: Any, config: TrialConfig, positions: BatchPositions) -> Any:
    """The model to train: `base` with a fresh float32 adapter, or `base` itself for `r: 0`.

    Draws from torch's generator: seed it first. The adapter drops its inputs by `positions`.
    """
    if config.training.get("gradient_checkpointing"):
        # A frozen embedding's output has no gradient to pass on through checkpointed blocks.
        base.enable_input_require_grads()
    if not config.lora.r:
        return base
    from peft import get_peft_model

    from trial.model.lora_dropout import install_hash_dropout

    model = get_peft_model(base, lora_config(config.lora))
    install_hash_dropout(model, positions)
    return model


def unload_restores_base(config: TrialConfig) -> bool:
    """Whether unloading the adapter gives back the base model bit for bit."""
    lora = config.lora
    extra = lora.model_extra or {}
    return bool(
        lora.r
        and lora.bias == "none"
        and not extra.get("modules_to_save")
        and not extra.get("trainable_token_indices")
        and not extra.get("target_parameters")
        # PiSSA, OLoRA, CorDA, LoftQ and their like write into the base weights.
        and isinstance(extra.get("init_lora_weights", True), bool)
        and config.zero_stage != 3
        and not config.training.get("gradient_checkpointing")
        and not config.training.get("torch_compile")
    )


def count_parameters(model: Any) -> tuple[int, int]:
    """Trainable and all parameters; under ZeRO-3 those of every partition."""
    trainable = total = 0
    for parameter in model.parameters():
        size = getattr(parameter, "ds_numel", parameter.numel())
        total += size
        trainable += size if parameter.requires_grad else 0
    return trainable, total


def model_hash(name_or_path: str, revision: str | None = None) -> str:
    """A hash that tells base models apart and stays the same in a copied folder.

    Over `config.json` without its own path, and of each weight file the name, the size and
    sixteen blocks of 64 KiB spread evenly over it: cheap at any size, no proof against forgery.
    """
    folder = _folder(name_or_path, revision)
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content.pop("_name_or_path", None)
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for file in sorted(file for pattern in WEIGHTS for file in folder.glob(pattern)):
        digest.update(file.name.encode())
        _sample(file, digest)
    return digest.hexdigest()[:16]


def _folder(name_or_path: str, revision: str | None) -> Path:
    path = Path(location(name_or_path))
    if path.is_dir():
        return path
    from transformers.utils import cached_file

    file = cached_file(name_or_path, "config.json", revision=revision)
    if file is None:
        raise ValueError(f"model.name_or_path: {name_or_path} has no config.json")
    return Path(file).parent


def _sample(file: Path, digest: Any) -> None:
    size = file.stat().st_size
    digest.update(struct.pack("<q", size))
    with open(file, "rb") as stream:
        for part in range(SAMPLES):
            stream.seek(max(0, size - BLOCK) * part // (SAMPLES - 1))
            digest.update(stream.read(BLOCK))
