"""Warnings about a sweep file that is valid and may still mislead or waste time."""

from __future__ import annotations

import math
from collections.abc import Iterator

from sweep.spec import hpu_shapes
from sweep.spec.dimension import Choices, Derived, Dimension, Range
from sweep.spec.spec import SweepSpec
from trial.store import metrics
from trial.store.metrics import EVALUATED, METRICS

_DECADE = 10
_FRACTIONAL = ("learning_rate", "lora_dropout", "warmup_ratio", "weight_decay", "fraction")


def advice(spec: SweepSpec) -> list[str]:
    """Warnings, a sentence each; empty when there is nothing to say."""
    return [line for rule in _RULES for line in rule(spec)]


def _scale(spec: SweepSpec) -> Iterator[str]:
    """The rank varies at a fixed alpha, and with it the scale alpha / r of the update."""
    alpha = spec.space.get("lora.lora_alpha", ())
    follows = any(isinstance(branch, Derived) for branch in alpha)
    if spec.varies("lora.r") and not follows and not spec.varies("lora.lora_alpha"):
        yield (
            "lora.r varies while lora.lora_alpha is fixed: the effective scale (alpha / r) changes"
            " with the rank, so the two cannot be told apart; `lora.lora_alpha: {expression:"
            " 2 * lora.r}` holds it"
        )


def _one_rate(spec: SweepSpec) -> Iterator[str]:
    """Ranks or alphas are compared at a single learning rate."""
    if spec.varies("training.learning_rate"):
        return
    for path in ("lora.r", "lora.lora_alpha"):
        if spec.varies(path):
            yield (
                f"every value of {path} is compared at one learning rate, which suits some of them"
                " better than others: search training.learning_rate beside it"
            )


def _noise(spec: SweepSpec) -> Iterator[str]:
    """A sampler that learns is given a parameter that changes the eval loss only by noise."""
    adaptive = spec.sampler.name not in ("grid", "random", "qmc")
    on_loss = any(goal.metric in ("eval_loss", "eval_loss_per_byte") for goal in spec.objectives)
    for path in ("zero_stage", "training.seed"):
        if adaptive and on_loss and spec.varies(path):
            yield (
                f"{path} moves eval_loss by noise only: beside sampler {spec.sampler.name} it is a"
                " dimension without a signal; give it a grid of its own"
            )


def _ranges(spec: SweepSpec) -> Iterator[str]:
    """Ranges that are linear over decades, or integer where fractions are usual."""
    for name, dimension in {**spec.space, **spec.variables}.items():
        for branch in dimension:
            if isinstance(branch, Range):
                yield from _range(name, branch)


def _range(name: str, branch: Range) -> Iterator[str]:
    if name.endswith("learning_rate") and not branch.log and branch.high > _DECADE * branch.low:
        yield f"{name}: {branch.describe()} spans more than a decade: say `log: true`"
    if branch.type == "int" and name.endswith(_FRACTIONAL):
        yield f"{name}: both ends are whole, so only whole numbers are drawn: say `type: float`"


def _sampler(spec: SweepSpec) -> Iterator[str]:
    """The sampler stays in its random start-up, or cannot learn from choices."""
    name, trials = spec.sampler.name, spec.stop.trials
    startup = spec.sampler.options.get("n_startup_trials", 10)
    if name in ("tpe", "gp") and trials is not None and trials <= startup:
        yield (
            f"the first {startup} trials of sampler {name} are random, and stop.trials is {trials}:"
            " the sampler never learns; lower sampler.n_startup_trials or run more trials"
        )
    lists = [name for name, dimension in _searched(spec) if _has_choices(dimension)]
    if name in ("cmaes", "qmc") and lists:
        yield f"sampler {name} draws choices at random: {', '.join(lists)}"


def _objective(spec: SweepSpec) -> Iterator[str]:
    """The metric is not a built-in one, or the pruner sees no evaluation."""
    for goal in spec.objectives:
        if goal.metric not in METRICS and goal.metric not in EVALUATED:
            yield (
                f"`{goal.metric}` is none of {', '.join(METRICS)}: every trial must report it, or"
                " it counts as failed"
            )
    training = spec.base.get("training") or {}
    chosen = (spec.base.get("evaluation") or {}).get("steps")
    if spec.pruner.name != "none" and training.get("eval_strategy") == "no" and not chosen:
        yield "training.eval_strategy is `no`: the pruner sees nothing before a trial ends"


def _measured(spec: SweepSpec) -> Iterator[str]:
    """A searched key changes what is evaluated: the study ranks what cannot be compared."""
    kind = metrics.depends_on(goal.metric for goal in spec.objectives)
    if not kind:
        return
    data = spec.base.get("data") or {}
    separate = any(data.get(key) for key in ("eval_path", "eval_split"))
    separate = separate or any(spec.varies(f"data.{key}") for key in ("eval_path", "eval_split"))
    for key in (*_ROWS, *([] if separate else _SPLIT)):
        if spec.varies(f"data.{key}"):
            what = "the rows that are evaluated"
            yield _unlike(f"data.{key}", what, "" if separate or key in _ROWS else _EVAL_PATH)
    for path in _TEXT_TO_TOKENS:
        if not spec.varies(path):
            continue
        if kind == "tokens":
            yield _unlike(path, _TEXT_TO_TOKENS[path], _PER_BYTE)
        elif path == "data.max_length":
            yield f"{path} varies: eval_loss_per_byte compares only lengths that cut no eval row"


_PER_BYTE = "say `objective: eval_loss_per_byte`"
_EVAL_PATH = "give `data.eval_path` a held-out file that all of them are evaluated on"
_ROWS = (
    "eval_path", "eval_split", "max_eval_samples", "train_on", "forget_path", "forget_split",
    "completion_column", "messages_column",
)  # fmt: skip
"""Keys of `data` that change what counts in an eval set, even one in a file of its own."""
_SPLIT = ("path", "name", "split", "split_seed", "eval_fraction")
"""Keys of `data` that change the eval set where that is held out of the same rows."""
_TEXT_TO_TOKENS = {
    "data.max_length": "where eval rows are cut",
    "data.prompt_format": "the tokens around the eval rows",
    "data.chat_template": "the tokens around the eval rows",
    "data.prompt_column": "the prompts of the eval rows",
    "data.system_column": "the prompts of the eval rows",
    "data.context_column": "the prompts of the eval rows",
    "data.history_column": "the prompts of the eval rows",
    "data.tokenize": "the tokens of the eval rows",
    "model.name_or_path": "the eval rows' tokens where tokenizers or their templates are unlike",
    "model.tokenizer_name_or_path": "the tokens of the eval rows",
}
"""Keys that change the tokens of the same text, and what they change."""


def _unlike(path: str, what: str, instead: str) -> str:
    return (
        f"{path} changes {what}: trials are ranked and pruned only among those that were evaluated"
        " on the same, while the sampler sees one objective"
        + (f"; {instead}" if instead else "; leave it out of the search")
    )


def _shapes(spec: SweepSpec) -> Iterator[str]:
    """On HPU, many tensor shapes mean many compilations."""
    if not hpu_shapes.is_for_hpu(spec):
        return
    counts = hpu_shapes.value_counts(spec)
    endless = [name for name, count in counts.items() if count is None]
    number = math.prod(count or 1 for count in counts.values())
    if not endless and number <= hpu_shapes.MAX_SILENT_SHAPES:
        return
    parts = " x ".join(f"{name} {'any' if c is None else c}" for name, c in counts.items())
    many = "any number of" if endless else f"up to {number}"
    yield (
        f"trials may have {many} shapes ({parts}): on HPU each is compiled anew, about 30 s for a"
        " 7B model, once per study and node; a few values (buckets) of each keep that small"
    )


def _gaudi(spec: SweepSpec) -> Iterator[str]:
    """On HPU, settings that Gaudi's documentation recommends and the file leaves out."""
    if not hpu_shapes.is_for_hpu(spec):
        return
    training, model = spec.base.get("training") or {}, spec.base.get("model") or {}
    half = training.get("bf16") or model.get("dtype") == "bfloat16"
    if not half and not spec.varies("training.bf16") and not spec.varies("model.dtype"):
        yield (
            "device hpu in float32: Gaudi computes in bfloat16 several times as fast; say"
            " `training.bf16: true` and `model.dtype: bfloat16` (adapters stay float32)"
        )
    if not model.get("attn_implementation") and not spec.varies("model.attn_implementation"):
        yield (
            "model.attn_implementation is not set: `gaudi_fused_sdpa` keeps no matrix of all pairs"
            " of tokens, on HPU alone"
        )


def _searched(spec: SweepSpec) -> list[tuple[str, Dimension]]:
    return [*spec.space.items(), *spec.variables.items()]


def _has_choices(dimension: Dimension) -> bool:
    return any(isinstance(branch, Choices) for branch in dimension)


_RULES = (_scale, _one_rate, _noise, _ranges, _sampler, _objective, _measured, _shapes, _gaudi)
