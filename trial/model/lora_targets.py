"""Which modules a LoRA adapter targets, and how many parameters it has, from weight shapes alone.

The rules are those of PEFT's `check_target_module_exists`; a test compares both. Torch-free.
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
"""GPT-2's `Conv1D` layers, whose weights are [inputs, outputs]."""
_LAYER = re.compile(r"\.(\d+)\.")

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of each weight by its name."""
Sizes = dict[str, tuple[int, int]]
"""(inputs, outputs) of linear layers by module name."""


def linear_modules(shapes: Shapes) -> Sizes:
    """All linear layers but the output head: the targets of `all-linear`."""
    sizes = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        if len(shape) != 2 or module == name or _last_part(module) in (*EMBEDDINGS, *HEADS):
            continue
        sizes[module] = shape if CONV1D.fullmatch(module) else (shape[1], shape[0])
    return sizes


def layer_of(module: str) -> int | None:
    """Number of the transformer block that a module belongs to; None outside of blocks."""
    match = _LAYER.search(module)
    return int(match.group(1)) if match else None


def target_modules(shapes: Shapes, lora: LoraSection) -> Sizes:
    """The modules that get an adapter; none for `r: 0`."""
    if not lora.r:
        return {}
    extra = lora.model_extra or {}
    targets, linear = lora.target_modules, linear_modules(shapes)
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        matched = linear
    else:
        candidates = {**linear, **_embeddings_and_heads(shapes)}
        matched = {name: candidates[name] for name in _matching(candidates, targets)}
    excluded = set(_matching(matched, extra.get("exclude_modules") or []))
    layers = extra.get("layers_to_transform")
    if layers is not None:
        included = {layers} if isinstance(layers, int) else set(layers)
        excluded |= {name for name in matched if layer_of(name) not in included}
    return {name: sizes for name, sizes in matched.items() if name not in excluded}


def adapter_parameters(shapes: Shapes, lora: LoraSection) -> int:
    """Number of parameters of A and B, DoRA's magnitudes and LoRA biases included."""
    total = 0
    for name, (inputs, outputs) in target_modules(shapes, lora).items():
        total += _rank(name, lora) * (inputs + outputs)
        total += outputs if lora.use_dora else 0
        total += outputs if (lora.model_extra or {}).get("lora_bias") else 0
    return total


def saved_parameters(shapes: Shapes, lora: LoraSection) -> int:
    """Number of base parameters trained beside the adapter: `modules_to_save` and `bias`."""
    if not lora.r:
        return 0
    targets = target_modules(shapes, lora)
    saved = (lora.model_extra or {}).get("modules_to_save") or []
    copies = set(_matching({name.rpartition(".")[0]: None for name in shapes}, saved))
    total = 0
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        is_trained_bias = kind == "bias" and (
            lora.bias == "all" or (lora.bias == "lora_only" and module in targets)
        )
        if is_trained_bias or module in copies:
            total += math.prod(shape)
    return total


def _rank(name: str, lora: LoraSection) -> int:
    """The rank of one module, by `rank_pattern` (as PEFT's `get_pattern_key` matches) or `r`."""
    pattern: Mapping[str, int] = (lora.model_extra or {}).get("rank_pattern") or {}
    for key, rank in pattern.items():
        if re.match(rf"(.*\.)?({key})$", name):
            return rank
    return lora.r


def _matching(names: Iterable[str], targets: str | Iterable[str]) -> list[str]:
    """PEFT's rule: a regular expression matches the whole name, an entry of a list its end."""
    if isinstance(targets, str):
        matches = re.compile(targets).fullmatch
        return [name for name in names if matches(name)]
    ends = list(targets)
    return [name for name in names if any(name == end or name.endswith(f".{end}") for end in ends)]


def _embeddings_and_heads(shapes: Shapes) -> Sizes:
    """Embeddings and output heads: targets only where they are named."""
    return {
        name.removesuffix(".weight"): (shape[1], shape[0])
        for name, shape in shapes.items()
        if len(shape) == 2 and _last_part(name.removesuffix(".weight")) in (*EMBEDDINGS, *HEADS)
    }


def _last_part(module: str) -> str:
    return module.rpartition(".")[2]


def backward_fraction(shapes: Shapes, lora: LoraSection) -> float:
    """The fraction of transformer blocks whose activations are kept for the backward pass.

    No gradient reaches the blocks before the first one with trained parameters.
    """
    layers = _layer_numbers(shapes)
    first = _layer_numbers(target_modules(shapes, lora))
    if not layers or not first or (lora.model_extra or {}).get("modules_to_save"):
        return 1.0
    return 1.0 - min(first) / (max(layers) + 1)


def _layer_numbers(names: Iterable[str]) -> list[int]:
    return [layer for name in names if (layer := layer_of(name)) is not None]
