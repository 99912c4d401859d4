"""Which modules a LoRA adapter changes, and how many parameters it has, from weight shapes alone.

The rules are PEFT's own; a test holds them against PEFT. Torch-free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from trial.config.sections import LoraSection

ALL_LINEAR = "all-linear"
EMBEDDINGS = ("embed_tokens", "embed_in", "wte", "wpe", "word_embeddings", "embed_positions")
HEADS = ("lm_head", "embed_out")
CONV1D = re.compile(r"transformer\.h\.\d+\.(attn|mlp)\.c_\w+")
"""GPT-2's linear layers, whose weights are stored inputs first."""
_LAYER = re.compile(r"\.(\d+)\.")

Shapes = Mapping[str, tuple[int, ...]]


def linear_modules(shapes: Shapes) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every linear layer by name, the output head left out."""
    found = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if len(shape) != 2 or module == name or _tail(module) in (*EMBEDDINGS, *HEADS):
            continue
        found[module] = shape if CONV1D.fullmatch(module) else (shape[1], shape[0])
    return found


def layer_of(module: str) -> int | None:
    """The number of the layer that a module belongs to."""
    match = _LAYER.search(module)
    return int(match.group(1)) if match else None


def target_modules(shapes: Shapes, lora: LoraSection) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the modules that get an adapter; none for `r: 0`."""
    if not lora.r:
        return {}
    extra = lora.model_extra or {}
    wanted, linear = lora.target_modules, linear_modules(shapes)
    if isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
        chosen = linear
    else:
        candidates = {**linear, **_others(shapes)}
        chosen = {name: candidates[name] for name in _matching(candidates, wanted)}
    dropped = set(_matching(chosen, extra.get("exclude_modules") or []))
    layers = extra.get("layers_to_transform")
    if layers is not None:
        kept = {layers} if isinstance(layers, int) else set(layers)
        dropped |= {name for name in chosen if layer_of(name) not in kept}
    return {name: sizes for name, sizes in chosen.items() if name not in dropped}


def adapter_parameters(shapes: Shapes, lora: LoraSection) -> int:
    """Parameters of the low-rank matrices themselves, magnitudes of DoRA included."""
    total = 0
    for name, (inputs, outputs) in target_modules(shapes, lora).items():
        total += _rank(name, lora) * (inputs + outputs)
        total += outputs if lora.use_dora else 0
        total += outputs if (lora.model_extra or {}).get("lora_bias") else 0
    return total


def saved_parameters(shapes: Shapes, lora: LoraSection) -> int:
    """Parameters of the base model that are trained beside the adapter, as copies or in place."""
    if not lora.r:
        return 0
    targets = target_modules(shapes, lora)
    wanted = (lora.model_extra or {}).get("modules_to_save") or []
    copies = set(_matching({name.rpartition(".")[0]: None for name in shapes}, wanted))
    total = 0
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        biases = kind == "bias" and (
            lora.bias == "all" or (lora.bias == "lora_only" and module in targets)
        )
        if biases or module in copies:
            total += math.prod(shape)
    return total


def _rank(name: str, lora: LoraSection) -> int:
    """The rank of one module: `rank_pattern` may single it out."""
    pattern: Mapping[str, int] = (lora.model_extra or {}).get("rank_pattern") or {}
    for key, rank in pattern.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return rank
    return lora.r


def _matching(names: Iterable[str], wanted: str | Iterable[str]) -> list[str]:
    """PEFT's rule: a regular expression fits the whole name, an entry of a list its end."""
    if isinstance(wanted, str):
        fits = re.compile(wanted).fullmatch
        return [name for name in names if fits(name)]
    ends = list(wanted)
    return [name for name in names if any(name == end or name.endswith(f".{end}") for end in ends)]


def _others(shapes: Shapes) -> dict[str, tuple[int, int]]:
    """Embeddings and the head: targets only when they are named."""
    return {
        name.removesuffix(".weight"): (shape[1], shape[0])
        for name, shape in shapes.items()
        if len(shape) == 2 and _tail(name.removesuffix(".weight")) in (*EMBEDDINGS, *HEADS)
    }


def _tail(module: str) -> str:
    return module.rpartition(".")[2]


def trained_share(shapes: Shapes, lora: LoraSection) -> float:
    """The share of layers whose activations are kept for the backward pass.

    Layers before the first one with anything to train pass no gradient on.
    """
    layers = _layers(shapes)
    first = _layers(target_modules(shapes, lora))
    if not layers or not first or (lora.model_extra or {}).get("modules_to_save"):
        return 1.0
    return 1.0 - min(first) / (max(layers) + 1)


def _layers(names: Iterable[str]) -> list[int]:
    return [layer for name in names if (layer := layer_of(name)) is not None]
