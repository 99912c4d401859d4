"""Does a trial fit its device? The memory of one rank, line by line, before anything is loaded.

Every line has two figures. What is *certain* cannot be avoided: the trial is refused when even that
is more than the device has. What is *likely* adds what a step keeps in passing, by the shapes of
the model's layers; compilers and allocators differ, so it only warns. Torch-free and pure.
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
    layer_of,
    linear_modules,
    saved_parameters,
    trained_share,
)

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
FLOAT32 = 4
STATES = {"adamw": 2, "adagrad": 1, "rmsprop": 1, "lion": 1, "sgd": 0, "adafactor": 0}
"""Values an optimizer keeps for each parameter; names are the first word of `training.optim`."""
SMALL_STATES = ("8bit", "4bit", "paged", "bnb", "torchao")
"""Optimizers that keep less, or elsewhere: nothing of theirs is certain."""
NEAR = 0.9
"""A trial that likely takes more than this share of its device is worth a warning."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Part:
    """One line of the sum, in bytes."""

    name: str
    certain: float
    likely: float
    how: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one rank of a trial takes."""

    parts: tuple[Part, ...]

    @property
    def certain(self) -> float:
        """Bytes that no implementation can do without."""
        return sum(part.certain for part in self.parts)

    @property
    def likely(self) -> float:
        """Bytes at the peak of a step, as far as shapes tell."""
        return sum(part.likely for part in self.parts)

    def lines(self) -> list[str]:
        """The sum as a table, in GiB."""
        rows = [("GiB of each device", "certain", "likely", "")]
        parts = [*self.parts, Part("in all", self.certain, self.likely, "")]
        rows += [(p.name, f"{p.certain / GIB:.2f}", f"{p.likely / GIB:.2f}", p.how) for p in parts]
        return [f"{a:<20}{b:>9}{c:>9}  {how}".rstrip() for a, b, c, how in rows]


def estimate(
    config: TrialConfig, shapes: Shapes, *, ranks: int = 1, fixed_shapes: bool = True
) -> Estimate:
    """The memory of one rank.

    Args:
        config: the trial.
        shapes: every weight of its base model, by name.
        ranks: how many devices the trial holds.
        fixed_shapes: whether every row has `data.max_length` tokens, as on HPU. Elsewhere batches
            are cut to their longest row, which nobody knows yet: nothing of a step is certain.

    Raises:
        ValueError: the user's DeepSpeed configuration cannot be read.
    """
    plan = _plan(config, shapes, ranks)
    step = _step(plan)
    if not fixed_shapes:
        step = [Part(part.name, 0.0, part.likely, part.how) for part in step]
    return Estimate((*_standing(plan), *step))


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the parts are made of."""

    config: TrialConfig
    shapes: Shapes
    ranks: int
    base: int
    """Parameters of the base model."""
    low: int
    """Parameters of the low-rank matrices."""
    trained: int
    """All parameters that are trained."""
    width: int
    """Bytes of a weight of the base model."""
    adapter_width: int
    """Bytes of a weight of the adapter."""
    compute: int
    """Bytes of a number inside the network."""
    stage: int | None
    mixed: bool
    """Whether DeepSpeed keeps float32 masters of bfloat16 weights."""
    zero: Mapping[str, Any]

    def shard(self, stage: int) -> int:
        """Over how many ranks something is spread that is spread from `stage` on."""
        return self.ranks if self.stage is not None and self.stage >= stage else 1

    def offloads(self, what: str) -> bool:
        return (self.zero.get(what) or {}).get("device", "none") != "none"


def _plan(config: TrialConfig, shapes: Shapes, ranks: int) -> _Plan:
    merged = deepspeed_config(config, "hpu", user_config(config.deepspeed.config))
    mixed = bool(merged and (merged.get("bf16") or {}).get("enabled") is True)
    base = sum(math.prod(shape) for shape in shapes.values())
    low = adapter_parameters(shapes, config.lora)
    width = 2 if mixed else BYTES[config.model.dtype]
    half = config.training.get("bf16") or config.training.get("fp16")
    return _Plan(
        config=config,
        shapes=shapes,
        ranks=ranks,
        base=base,
        low=low,
        trained=low + saved_parameters(shapes, config.lora) if config.lora.r else base,
        width=width,
        # PEFT keeps adapters in float32 over any base; DeepSpeed's bf16 casts the whole model.
        adapter_width=2 if mixed else FLOAT32,
        compute=2 if half else width,
        stage=config.zero_stage,
        mixed=mixed,
        zero=(merged or {}).get("zero_optimization") or {},
    )


def _standing(plan: _Plan) -> list[Part]:
    """What stays from the first step to the last: exact."""
    parts = [_weights(plan)]
    if plan.config.lora.r:
        parts.append(_adapter(plan))
    return [*parts, _gradients(plan), _optimizer(plan)]


def _weights(plan: _Plan) -> Part:
    how = f"{plan.base:,} x {plan.width} bytes{_over(plan, 3)}"
    if plan.offloads("offload_param"):
        return Part("weights", 0.0, 0.0, f"{how}, kept on the host")
    size = plan.base * plan.width / plan.shard(3)
    return Part("weights", size, size, how)


def _adapter(plan: _Plan) -> Part:
    """The low-rank matrices, and copies of base modules that are trained whole."""
    copies = plan.trained - plan.low
    size = (plan.low * plan.adapter_width + copies * plan.width) / plan.shard(3)
    how = f"{plan.low:,} x {plan.adapter_width} bytes"
    how += f" and {copies:,} x {plan.width}" if copies else ""
    return Part("adapter", size, size, how + _over(plan, 3))


def _trained_bytes(plan: _Plan) -> int:
    if not plan.config.lora.r:
        return plan.base * plan.width
    return plan.low * plan.adapter_width + (plan.trained - plan.low) * plan.width


def _gradients(plan: _Plan) -> Part:
    size = _trained_bytes(plan) / plan.shard(2)
    how = f"{plan.trained:,}, in the type of their weights{_over(plan, 2)}"
    # DeepSpeed adds bf16 gradients up in float32 copies.
    extra = plan.trained * FLOAT32 / plan.ranks if plan.mixed else 0.0
    certain = 0.0 if plan.offloads("offload_optimizer") else size
    return Part("gradients", certain, size + extra, how)


def _optimizer(plan: _Plan) -> Part:
    name = str(plan.config.training.get("optim", "adamw_torch"))
    small = any(word in name for word in SMALL_STATES)
    states = STATES.get(name.partition("_")[0], 0) if not small else 0
    if plan.stage is None or (plan.stage == 0 and not plan.mixed):
        size = float(states * _trained_bytes(plan))
        return Part("optimizer", size, size, f"{name}: {states} x what is trained")
    # ZeRO keeps float32 masters and states, spread over the ranks (by its bf16 optimizer always).
    each = FLOAT32 * (states + 1)
    size = plan.trained * each / plan.ranks
    how = f"{name}: {plan.trained:,} x {each} bytes over {plan.ranks} rank(s)"
    if plan.offloads("offload_optimizer"):
        return Part("optimizer", 0.0, 0.0, f"{how}, kept on the host")
    return Part("optimizer", size, size, how)


def _over(plan: _Plan, stage: int) -> str:
    return f" / {plan.ranks} ranks" if plan.shard(stage) > 1 else ""


def _step(plan: _Plan) -> list[Part]:
    """What a step adds: the larger of a training step and of an evaluated batch."""
    training, evaluation = _training(plan), _evaluation(plan)
    if sum(part.likely for part in evaluation) > sum(part.likely for part in training):
        return [*evaluation, *_gathered(plan)]
    return [*training, *_gathered(plan)]


def _training(plan: _Plan) -> list[Part]:
    config = plan.config
    rows, length = config.training["per_device_train_batch_size"], config.data.max_length
    tokens, compute = rows * length, plan.compute
    outputs, width, layers = _layer(plan.shapes)
    share = trained_share(plan.shapes, config.lora)
    inside = tokens * outputs * compute
    scores = 0 if _fused(config) else tokens * length * _heads(plan.shapes) * (FLOAT32 + compute)
    # Beside its linear layers' outputs a layer keeps float32 norms and products of activations.
    richly = inside * 2 + tokens * 2 * width * FLOAT32 + scores
    if config.training.get("gradient_checkpointing"):
        kept = tokens * width * compute * layers
        how = f"{rows} x {length} tokens x {layers} layers x {width:,}, and one layer's inside"
        activations = Part("activations", kept * share + inside, kept + richly, how)
    else:
        how = f"{rows} x {length} tokens x {layers} layers x {outputs:,} x {compute} bytes"
        activations = Part("activations", inside * layers * share, richly * layers, how)
    vocabulary = _vocabulary(plan.shapes)
    logits = tokens * vocabulary
    how = f"{rows} x {length} tokens x {vocabulary:,} words, in float32"
    return [activations, Part("logits", logits * FLOAT32, logits * (compute + 3 * FLOAT32), how)]


def _evaluation(plan: _Plan) -> list[Part]:
    config = plan.config
    rows, length = config.training["per_device_eval_batch_size"], config.data.max_length
    outputs, _, _ = _layer(plan.shapes)
    vocabulary = _vocabulary(plan.shapes)
    tokens = rows * length
    how = f"evaluation: {rows} x {length} tokens"
    return [
        Part("activations", 0.0, tokens * outputs * plan.compute, how),
        Part(
            "logits",
            tokens * vocabulary * plan.compute,
            tokens * vocabulary * (plan.compute + 2 * FLOAT32),
            f"{how} x {vocabulary:,} words",
        ),
    ]


def _gathered(plan: _Plan) -> list[Part]:
    """Weights that ZeRO-3 brings together while they are used."""
    if plan.shard(3) == 1 and not plan.offloads("offload_param"):
        return []
    largest = max((math.prod(shape) for shape in plan.shapes.values()), default=0)
    return [
        Part(
            "gathered weights",
            largest * plan.width,
            2 * _layer_parameters(plan.shapes) * plan.width + largest * plan.width,
            f"the largest has {largest:,}",
        )
    ]


def _layer(shapes: Shapes) -> tuple[int, int, int]:
    """Outputs of all linear layers of a block together, the residual's width, number of blocks."""
    linear = linear_modules(shapes)
    layers = {layer for name in linear if (layer := layer_of(name)) is not None}
    if not layers:
        return 0, 0, 0
    first = [sizes for name, sizes in linear.items() if layer_of(name) == min(layers)]
    return sum(outputs for _, outputs in first), min(inputs for inputs, _ in first), len(layers)


def _layer_parameters(shapes: Shapes) -> int:
    linear = linear_modules(shapes)
    sizes: dict[int, int] = {}
    for name, (inputs, outputs) in linear.items():
        if (layer := layer_of(name)) is not None:
            sizes[layer] = sizes.get(layer, 0) + inputs * outputs
    return max(sizes.values(), default=0)


def _vocabulary(shapes: Shapes) -> int:
    """Rows of the largest matrix outside the blocks: the embedding's or the head's."""
    return max((s[0] for n, s in shapes.items() if len(s) == 2 and layer_of(n) is None), default=0)


def _heads(shapes: Shapes) -> int:
    """Attention heads as most models have them, of 128 numbers each."""
    return max(1, _layer(shapes)[1] // 128)


def _fused(config: TrialConfig) -> bool:
    """Whether attention keeps no matrix of all pairs of tokens."""
    return config.model.attn_implementation not in (None, "eager")
