"""Reads settings, tensor shapes and tokenizer files of a Hugging Face model folder. Torch-free."""

from __future__ import annotations

import ast
import importlib.util
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
)
TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")
ADAPTER_FILE = "adapter_config.json"
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length")
MAX_HEADER = 100_000_000
"""Bytes; the safetensors format allows no longer header."""


class ModelFolder:
    """The files of one saved model."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def settings(self) -> dict[str, Any]:
        """The content of `config.json`.

        Raises:
            ValueError: it is missing, no JSON object, or names no model type.
        """
        settings = read_object(self.path / "config.json")
        if not isinstance(settings.get("model_type"), str):
            raise ValueError(f"{self.path / 'config.json'}: `model_type` is missing")
        return settings

    def refusals(self) -> list[str]:
        """Why the folder is no base model to train, as what it should be instead.

        Raises:
            ValueError: `config.json` cannot be read.
        """
        if (self.path / ADAPTER_FILE).is_file():
            rule = f"a base model alone: {ADAPTER_FILE} lies beside it, and would be loaded into it"
            return [rule]
        settings, rules = self.settings(), []
        if settings.get("quantization_config"):
            rules.append(
                "a base model that is not quantised (`quantization_config` in config.json)"
            )
        if settings.get("is_encoder_decoder"):
            rules.append("a causal language model alone, without an encoder (`is_encoder_decoder`)")
        return rules

    def max_positions(self) -> int | None:
        """The longest sequence that the model supports, where its settings say so."""
        settings = self.settings()
        for part in (settings, settings.get("text_config") or {}):
            positions = [part[name] for name in POSITIONS if isinstance(part.get(name), int)]
            if positions:
                return int(positions[0])
        return None

    def weight_files(self) -> list[Path]:
        """Files of weights, sorted by name."""
        return sorted(file for pattern in WEIGHTS for file in self.path.glob(pattern))

    def shards(self) -> Mapping[str, str]:
        """File of each tensor, from the index of a model in several files; empty without one."""
        for name in INDEXES:
            if (self.path / name).is_file():
                weight_map = read_object(self.path / name).get("weight_map", {})
                return weight_map if isinstance(weight_map, dict) else {}
        return {}

    def checkpoint_files(self) -> list[Path]:
        """The files that `from_pretrained` reads: safetensors before pickles, one before shards."""
        for index in INDEXES:
            whole = self.path / index.removesuffix(".index.json")
            if whole.is_file():
                return [whole]
            if (self.path / index).is_file():
                shards = read_object(self.path / index).get("weight_map", {})
                return [self.path / name for name in sorted(set(shards.values()))]
        return []

    def missing_shards(self) -> list[str]:
        """Files that the index names and that do not exist."""
        indexed = sorted(set(self.shards().values()))
        return [name for name in indexed if not (self.path / name).is_file()]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Shapes by tensor name; an empty shape where only the name is known.

        Raises:
            ValueError: a safetensors file is damaged.
        """
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(self.shards(), ())
        for file in self.path.glob("*.safetensors"):
            shapes |= safetensors_shapes(file)
        return shapes

    def has_tokenizer(self) -> bool:
        """Whether the folder has any tokenizer file."""
        return any((self.path / name).is_file() for name in TOKENIZER_FILES)

    def has_chat_template(self) -> bool:
        """Whether the tokenizer comes with a chat template."""
        if any((self.path / name).is_file() for name in TEMPLATE_FILES):
            return True
        try:
            return bool(read_object(self.path / "tokenizer_config.json").get("chat_template"))
        except ValueError:
            return False


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: the file has none; names file, line and reason.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} line {error.lineno}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: a {type(content).__name__}, not a JSON object")
    return content


def safetensors_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by tensor name, from the header of a safetensors file.

    Unlike `safetensors.safe_open` it says how many bytes a truncated file lacks.

    Raises:
        ValueError: the header is damaged, or the file ends before its tensors do.
    """
    with open(file, "rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        text = stream.read(size) if 0 < size < MAX_HEADER else b""
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        end = 8 + size + max((entry["data_offsets"][1] for entry in tensors.values()), default=0)
        shapes = {name: tuple(entry["shape"]) for name, entry in tensors.items()}
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"{file}: not a safetensors file") from error
    if (length := file.stat().st_size) != end:
        raise ValueError(f"{file}: cut short, {length} bytes of {end}")
    return shapes


@cache
def causal_model_types() -> frozenset[str]:
    """Model types that the installed transformers can load as a causal language model.

    Parsed from its source, since an import may load torch; empty where that fails.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        return frozenset()
    file = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
                continue
            if ast.unparse(node.targets[0]) == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES":
                return frozenset(dict(ast.literal_eval(node.value.args[0])))
    except (OSError, SyntaxError, ValueError, IndexError):
        pass
    return frozenset()
