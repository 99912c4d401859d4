"""Estimates the device memory of one rank of a trial, part by part, from weight shapes alone.

Every part has two figures. The *certain* one cannot be avoided: a trial is refused when even the
sum of these exceeds the device. The *likely* one adds the temporary tensors of a step, by the
shapes of the model's layers; compilers and allocators differ, so it only warns. Torch-free.

Weights, gradients and optimizer states follow the ZeRO paper (Rajbhandari et al. 2020,
arXiv:1910.02054): stage 1 shards optimizer states over the ranks, stage 2 gradients too, stage 3
weights too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trial.config.trial_config import TrialConfig
from trial.devices.deepspeed_config import deepspeed_config, user_config
from trial.devices.device_memory import GIB
from trial.model.lora_targets import (
    adapter_parameters,
    backward_fraction,
    layer_of,
    linear_modules,
    saved_parameters,
)

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT32 = 4
OPTIMIZER_STATES = {"adamw": 2, "adagrad": 1, "rmsprop": 1, "lion": 1, "sgd": 0, "adafactor": 0}
"""Values an optimizer keeps per parameter, by the first word of `training.optim`."""
REDUCED_STATES = ("8bit", "4bit", "paged", "bnb", "torchao")
"""Optimizers that keep lower precision, or states on the host: none of it is certain."""
NEARLY_FULL = 0.9
"""A trial that likely takes more than this fraction of its device's memory gets a warning."""
HEAD_SIZE = 128
"""Assumed width of an attention head, that of most models."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """One part of the sum, in bytes, and the formula in words."""

    name: str
    certain: float
    likely: float
    formula: str


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """The memory of one rank of a trial."""

    parts: tuple[MemoryPart, ...]

    @property
    def certain(self) -> float:
        """Bytes that every implementation needs."""
        return sum(part.certain for part in self.parts)

    @property
    def likely(self) -> float:
        """Bytes at the peak of a step, as far as shapes show."""
        return sum(part.likely for part in self.parts)

    def lines(self) -> list[str]:
        """The sum as a table, in GiB."""
        rows = [("GiB of each device", "certain", "likely", "")]
        parts = [*self.parts, MemoryPart("in all", self.certain, self.likely, "")]
        rows += [
            (part.name, f"{part.certain / GIB:.2f}", f"{part.likely / GIB:.2f}", part.formula)
            for part in parts
        ]
        return [f"{a:<20}{b:>9}{c:>9}  {formula}".rstrip() for a, b, c, formula in rows]


def estimate(
    config: TrialConfig, shapes: Shapes, *, ranks: int = 1, fixed_shapes: bool = True
) -> MemoryEstimate:
    """The memory of one rank.

    Args:
        config: the trial.
        shapes: every weight of its base model, by name.
        ranks: number of devices that the trial trains on.
        fixed_shapes: whether every row has `data.max_length` tokens, as on HPU. Elsewhere batches
            are cut to their longest row, which is not known yet: no part of a step is certain.

    Raises:
        ValueError: the user's DeepSpeed configuration cannot be read.
    """
    sizes = _trial_sizes(config, shapes, ranks)
    step = _step_parts(sizes)
    if not fixed_shapes:
        step = [MemoryPart(part.name, 0.0, part.likely, part.formula) for part in step]
    return MemoryEstimate((*_persistent_parts(sizes), *step))


@dataclass(frozen=True, slots=True)
class _TrialSizes:
    """The quantities that the parts are computed from."""

    config: TrialConfig
    shapes: Shapes
    ranks: int
    base_parameters: int
    lora_parameters: int
    trained_parameters: int
    """The adapter's, and those of the base model that are trained beside it."""
    base_bytes: int
    """Bytes per weight of the base model."""
    lora_bytes: int
    """Bytes per weight of the adapter."""
    compute_bytes: int
    """Bytes per activation."""
    stage: int | None
    """The ZeRO stage."""
    mixed: bool
    """Whether DeepSpeed keeps float32 master copies of bfloat16 weights."""
    zero: Mapping[str, Any]
    """DeepSpeed's `zero_optimization` section."""

    @property
    def trained_bytes(self) -> int:
        """Bytes per trained weight of the base model: held in float32, unless DeepSpeed casts all.

        It then keeps float32 copies beside them.
        """
        return self.base_bytes if self.mixed else FLOAT32

    def shards(self, stage: int) -> int:
        """Number of ranks that share what ZeRO shards from `stage` on."""
        return self.ranks if self.stage is not None and self.stage >= stage else 1

    def offloads(self, key: str) -> bool:
        """Whether `key` (`offload_param`, `offload_optimizer`) moves it to the host."""
        return (self.zero.get(key) or {}).get("device", "none") != "none"


def _trial_sizes(config: TrialConfig, shapes: Shapes, ranks: int) -> _TrialSizes:
    merged = deepspeed_config(config, "hpu", user_config(config.deepspeed.config))
    mixed = bool(merged and (merged.get("bf16") or {}).get("enabled") is True)
    base_parameters = sum(math.prod(shape) for shape in shapes.values())
    lora_parameters = adapter_parameters(shapes, config.lora)
    base_bytes = 2 if mixed else BYTES[config.model.dtype]
    half = config.training.get("bf16") or config.training.get("fp16")
    return _TrialSizes(
        config=config,
        shapes=shapes,
        ranks=ranks,
        base_parameters=base_parameters,
        lora_parameters=lora_parameters,
        trained_parameters=(
            lora_parameters + saved_parameters(shapes, config.lora)
            if config.lora.r
            else base_parameters
        ),
        base_bytes=base_bytes,
        # PEFT keeps adapters in float32 over any base; DeepSpeed's bf16 casts the whole model.
        lora_bytes=2 if mixed else FLOAT32,
        compute_bytes=2 if half else base_bytes,
        stage=config.zero_stage,
        mixed=mixed,
        zero=(merged or {}).get("zero_optimization") or {},
    )


def _persistent_parts(sizes: _TrialSizes) -> list[MemoryPart]:
    """Parts that stay from the first step to the last; exact."""
    parts = [_weights(sizes)]
    if sizes.config.lora.r:
        parts.append(_adapter(sizes))
    return [*parts, _gradients(sizes), _optimizer(sizes)]


def _weights(sizes: _TrialSizes) -> MemoryPart:
    each = sizes.base_bytes if sizes.config.lora.r else sizes.trained_bytes
    formula = f"{sizes.base_parameters:,} x {each} bytes{_shard_text(sizes, 3)}"
    if sizes.offloads("offload_param"):
        return MemoryPart("weights", 0.0, 0.0, f"{formula}, kept on the host")
    size = sizes.base_parameters * each / sizes.shards(3)
    # Passes take copies in the type of the base model, where that is a lower one.
    copies = sizes.base_parameters * sizes.base_bytes if each > sizes.base_bytes else 0
    return MemoryPart("weights", size, size + copies, formula)


def _adapter(sizes: _TrialSizes) -> MemoryPart:
    """The low-rank matrices, and the parts of the base model that are trained whole."""
    copies = sizes.trained_parameters - sizes.lora_parameters
    whole = sizes.lora_parameters * sizes.lora_bytes + copies * sizes.trained_bytes
    size = whole / sizes.shards(3)
    formula = f"{sizes.lora_parameters:,} x {sizes.lora_bytes} bytes"
    formula += f" and {copies:,} x {sizes.trained_bytes}" if copies else ""
    return MemoryPart("adapter", size, size, formula + _shard_text(sizes, 3))


def _trained_bytes(sizes: _TrialSizes) -> int:
    """Bytes of all trained parameters, in the types of their weights."""
    if not sizes.config.lora.r:
        return sizes.base_parameters * sizes.trained_bytes
    copies = sizes.trained_parameters - sizes.lora_parameters
    return sizes.lora_parameters * sizes.lora_bytes + copies * sizes.trained_bytes


def _gradients(sizes: _TrialSizes) -> MemoryPart:
    size = _trained_bytes(sizes) / sizes.shards(2)
    formula = f"{sizes.trained_parameters:,}, in the type of their weights{_shard_text(sizes, 2)}"
    # DeepSpeed's bf16 optimizer accumulates gradients in float32 copies.
    extra = sizes.trained_parameters * FLOAT32 / sizes.ranks if sizes.mixed else 0.0
    certain = 0.0 if sizes.offloads("offload_optimizer") else size
    return MemoryPart("gradients", certain, size + extra, formula)


def _optimizer(sizes: _TrialSizes) -> MemoryPart:
    name = str(sizes.config.training.get("optim", "adamw_torch"))
    reduced = any(word in name for word in REDUCED_STATES)
    states = 0 if reduced else OPTIMIZER_STATES.get(name.partition("_")[0], 0)
    if sizes.stage is None or (sizes.stage == 0 and not sizes.mixed):
        size = float(states * _trained_bytes(sizes))
        return MemoryPart("optimizer", size, size, f"{name}: {states} x what is trained")
    # ZeRO keeps float32 master copies and states, sharded over the ranks (its bf16 optimizer does
    # so in every stage).
    each = FLOAT32 * (states + 1)
    size = sizes.trained_parameters * each / sizes.ranks
    formula = f"{name}: {sizes.trained_parameters:,} x {each} bytes over {sizes.ranks} rank(s)"
    if sizes.offloads("offload_optimizer"):
        return MemoryPart("optimizer", 0.0, 0.0, f"{formula}, kept on the host")
    return MemoryPart("optimizer", size, size, formula)


def _shard_text(sizes: _TrialSizes, stage: int) -> str:
    return f" / {sizes.ranks} ranks" if sizes.shards(stage) > 1 else ""


def _step_parts(sizes: _TrialSizes) -> list[MemoryPart]:
    """Temporary tensors: of a training step or of an evaluated batch, whichever takes more."""
    training, evaluation = _training_parts(sizes), _evaluation_parts(sizes)
    if sum(part.likely for part in evaluation) > sum(part.likely for part in training):
        return [*evaluation, *_gathered_parts(sizes)]
    return [*training, *_gathered_parts(sizes)]


def _training_parts(sizes: _TrialSizes) -> list[MemoryPart]:
    """Activations that the backward pass needs, and the logits.

    Certain activations: the outputs of all linear layers. Likely ones: twice these (inputs of
    activation functions and products), two float32 norms per layer, and the attention scores where
    no fused kernel is used. Certain logits: one float32 copy. Likely ones: the model's own, and
    three float32 tensors of their size in the loss (copy, log-probabilities, gradient).
    """
    config = sizes.config
    rows, length = config.training["per_device_train_batch_size"], config.data.max_length
    tokens, compute = rows * length, sizes.compute_bytes
    outputs, width, layers = _block_shape(sizes.shapes)
    share = backward_fraction(sizes.shapes, config.lora)
    block = tokens * outputs * compute
    heads = max(1, width // HEAD_SIZE)
    scores = 0 if _has_fused_attention(config) else tokens * length * heads * (FLOAT32 + compute)
    likely_block = block * 2 + tokens * 2 * width * FLOAT32 + scores
    if config.training.get("gradient_checkpointing"):
        inputs = tokens * width * compute * layers
        formula = f"{rows} x {length} tokens x {layers} layers x {width:,}, and one layer's inside"
        certain, likely = inputs * share + block, inputs + likely_block
    else:
        formula = f"{rows} x {length} tokens x {layers} layers x {outputs:,} x {compute} bytes"
        certain, likely = block * layers * share, likely_block * layers
    activations = MemoryPart("activations", certain, likely, formula)
    vocabulary = _vocabulary(sizes.shapes)
    logits = tokens * vocabulary
    formula = f"{rows} x {length} tokens x {vocabulary:,} words, in float32"
    certain, likely = logits * FLOAT32, logits * (compute + 3 * FLOAT32)
    return [activations, MemoryPart("logits", certain, likely, formula)]


def _evaluation_parts(sizes: _TrialSizes) -> list[MemoryPart]:
    """One block's outputs and the logits of an evaluated batch."""
    config = sizes.config
    rows, length = config.training["per_device_eval_batch_size"], config.data.max_length
    outputs, _, _ = _block_shape(sizes.shapes)
    vocabulary = _vocabulary(sizes.shapes)
    tokens = rows * length
    formula = f"evaluation: {rows} x {length} tokens"
    return [
        MemoryPart("activations", 0.0, tokens * outputs * sizes.compute_bytes, formula),
        MemoryPart(
            "logits",
            tokens * vocabulary * sizes.compute_bytes,
            tokens * vocabulary * (sizes.compute_bytes + 2 * FLOAT32),
            f"{formula} x {vocabulary:,} words",
        ),
    ]


def _gathered_parts(sizes: _TrialSizes) -> list[MemoryPart]:
    """Weights that ZeRO-3 gathers while they are used: at most two layers and the largest."""
    if sizes.shards(3) == 1 and not sizes.offloads("offload_param"):
        return []
    largest = max((math.prod(shape) for shape in sizes.shapes.values()), default=0)
    return [
        MemoryPart(
            "gathered weights",
            largest * sizes.base_bytes,
            2 * _layer_parameters(sizes.shapes) * sizes.base_bytes + largest * sizes.base_bytes,
            f"the largest has {largest:,}",
        )
    ]


def _block_shape(shapes: Shapes) -> tuple[int, int, int]:
    """Outputs of all linear layers of a block, width of the residual stream, number of blocks."""
    linear = linear_modules(shapes)
    layers = {layer for name in linear if (layer := layer_of(name)) is not None}
    if not layers:
        return 0, 0, 0
    first = [sizes for name, sizes in linear.items() if layer_of(name) == min(layers)]
    return sum(outputs for _, outputs in first), min(inputs for inputs, _ in first), len(layers)


def _layer_parameters(shapes: Shapes) -> int:
    """Weights of the linear layers of the largest block."""
    linear = linear_modules(shapes)
    sizes: dict[int, int] = {}
    for name, (inputs, outputs) in linear.items():
        if (layer := layer_of(name)) is not None:
            sizes[layer] = sizes.get(layer, 0) + inputs * outputs
    return max(sizes.values(), default=0)


def _vocabulary(shapes: Shapes) -> int:
    """Rows of the largest matrix outside the blocks: the embedding or the output head."""
    return max((s[0] for n, s in shapes.items() if len(s) == 2 and layer_of(n) is None), default=0)


def _has_fused_attention(config: TrialConfig) -> bool:
    """Whether attention stores no matrix of scores."""
    return config.model.attn_implementation not in (None, "eager")
