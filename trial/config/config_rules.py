"""Rules for a trial's configuration that a field's type cannot state. Torch-free.

Names and types of library arguments, bounds of training arguments, keys of the GaudiConfig, and
what an objective needs of the other sections. Every function takes plain values and returns the
list of all mistakes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from trial.config import library_arguments, objective_registry
from trial.config.errors import Problem, nearest_choice, unknown
from trial.config.sections import TRAINING_DEFAULTS, LoraSection

SET_BY_HARNESS: dict[str, str] = {
    "output_dir": "the trial folder is the output",
    "overwrite_output_dir": "the trial folder is the output",
    "logging_dir": "logs go to the trial folder",
    "use_habana": "say `device: hpu`",
    "use_cpu": "say `device: cpu`",
    "no_cuda": "say `device: cpu`",
    "use_mps_device": "devices are auto, cpu, cuda and hpu",
    "resume_from_checkpoint": "a trial goes on from its own newest checkpoint by itself",
    "deepspeed": "say `deepspeed: {config: ...}` and `zero_stage`",
    "remove_unused_columns": "the dataset holds only what the model takes",
    "label_names": "labels are always `labels`",
    "local_rank": "ranks are started by the harness",
    "load_best_model_at_end": "say `keep: best` or `keep: last`",
    "metric_for_best_model": "the metric is eval_loss",
    "greater_is_better": "the metric is eval_loss",
    "auto_find_batch_size": "it would change the configuration being compared",
    "ignore_data_skip": "it would make a resumed trial differ",
    "restore_callback_states_from_checkpoint": "resuming is the harness's own",
    "push_to_hub": "sweeps stay offline; export the winner",
    "torchdynamo": "say `torch_compile: true`",
}
"""Training arguments that the harness sets itself, and what to say instead."""

_SHARDED = "weights are sharded by `zero_stage`"
_OWN_EVALUATION = "evaluations are the trial's own, in the type that it trains in"
_WITHOUT_EFFECT: dict[str, tuple[tuple[Any, ...], str]] = {
    "save_only_model": ((False,), "a trial resumes exactly, from the optimizer's state too"),
    "accelerator_config": ((None,), "batches and accumulation have keys of their own here"),
    "bf16_full_eval": ((False,), _OWN_EVALUATION),
    "fp16_full_eval": ((False,), _OWN_EVALUATION),
    "jit_mode_eval": ((False,), _OWN_EVALUATION),
    "fsdp": ((None, "", []), _SHARDED),
    "fsdp_config": ((None,), _SHARDED),
    "fsdp_min_num_params": ((0,), _SHARDED),
    "fsdp_transformer_layer_cls_to_wrap": ((None,), _SHARDED),
    "length_column_name": (("length",), "`group_by_length` counts tokens itself"),
    "past_index": ((-1,), "rows are trained whole"),
    "per_gpu_train_batch_size": ((None,), "say `per_device_train_batch_size`"),
    "per_gpu_eval_batch_size": ((None,), "say `per_device_eval_batch_size`"),
}
"""Training arguments that would not do here what they say: the values that are accepted in a new
configuration, their defaults, and why no other is."""
_TAKES_NO_OPTIM_ARGS = ("adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "sgd")
"""Values of `optim` for which transformers ignores `optim_args`."""
_MINIMUM: dict[str, tuple[float, bool]] = {
    "learning_rate": (0, False),
    "per_device_train_batch_size": (1, True),
    "per_device_eval_batch_size": (1, True),
    "gradient_accumulation_steps": (1, True),
    "warmup_ratio": (0, True),
    "warmup_steps": (0, True),
    "weight_decay": (0, True),
    "max_grad_norm": (0, True),
    "adam_epsilon": (0, False),
    "num_train_epochs": (0, False),
    "logging_steps": (0, False),
    "eval_steps": (0, False),
    "save_steps": (0, False),
    "seed": (0, True),
    "label_smoothing_factor": (0, True),
    "neftune_noise_alpha": (0, True),
    "adam_beta1": (0, True),
    "adam_beta2": (0, True),
    library_arguments.LORAPLUS_RATIO: (1, True),
}
"""The least value of a training argument, and whether that value itself is allowed."""
_OWN_GROUPS = ("galore", "lomo", "apollo", "layerwise")
"""Parts of the names of optimizers that group the weights themselves."""
_STEPS = ("logging_steps", "eval_steps", "save_steps")
"""Arguments that are a number of steps, or a fraction of all steps if below 1."""
_NEEDED_BY_SCHEDULER = {
    "cosine_with_min_lr": ("min_lr", "min_lr_rate"),
    "cosine_warmup_with_min_lr": ("min_lr", "min_lr_rate"),
    "warmup_stable_decay": ("num_decay_steps",),
}
"""Keys of `lr_scheduler_kwargs` of which a scheduler needs one."""
_FRACTIONS = ("warmup_ratio", "label_smoothing_factor")
"""Arguments that are at most 1."""
_BELOW_ONE = ("adam_beta1", "adam_beta2")
"""Arguments that torch's AdamW wants below 1."""
_SEED_LIMIT = 2**32
"""Seeds are below this: numpy's generator takes no other."""
_DATA_SEED_LIMIT = 2**63
"""The order of the rows is drawn by torch's generator, which takes 64 bits."""
_RANDOM_START = "pissa_niter_"
"""Prefix of PEFT's `pissa_niter_N`: its approximate SVD draws random numbers, and PEFT draws others
when it loads the adapter."""

_UNMET_STARTS: dict[str, str] = {
    "corda": "needs PEFT's preprocess_corda before the adapter is made",
    "loftq": "prepares a quantised base model",
    "lora_ga": "needs PEFT's preprocess_loraga before the adapter is made",
}
"""Values of `init_lora_weights` that their name alone does not bring about, and why."""
_UNMET_KEYS: dict[str, str] = {
    "arrow_config": "it routes between adapters that are trained already",
    "megatron_config": "it needs Megatron's parallel layers",
    "megatron_core": "it needs Megatron's parallel layers",
    "monteclora_config": "it adds a loss of its own, which no trainer here computes",
    "use_qalora": "it needs a base model quantised by GPTQ",
    "qalora_group_size": "it needs a base model quantised by GPTQ",
    "loftq_config": "it prepares a quantised base model",
    "corda_config": "it needs PEFT's preprocess_corda before the adapter is made",
    "lora_ga_config": "it needs PEFT's preprocess_loraga before the adapter is made",
    "runtime_config": "it is about loading, and PEFT does not save it",
}
"""Keys of `lora` that are refused unless null, and why."""
_PARTITIONING_STAGE = 3
EVA = "eva"
"""The `init_lora_weights` that takes the adapter's start from the training rows."""
_CHANGES_BASE_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Prefixes of `init_lora_weights` methods that change the base weights."""


def training_problems(training: Mapping[str, Any]) -> list[Problem]:
    """Every mistake under `training`."""
    problems = [
        Problem(
            f"training.{name}",
            f"is set by the harness: {SET_BY_HARNESS[name]}",
            repr(training[name]),
        )
        for name in training
        if name in SET_BY_HARNESS
    ]
    rest = {name: value for name, value in training.items() if name not in SET_BY_HARNESS}
    known = library_arguments.training_arguments() | library_arguments.optimizer_arguments()
    problems += _argument_problems("training", rest, known)
    problems += _reporter_problems(rest.get("report_to"))
    if isinstance(seed := rest.get("seed"), int) and seed >= _SEED_LIMIT:
        problems.append(Problem("training.seed", "must be below 2**32", repr(seed)))
    if isinstance(seed := rest.get("data_seed"), int) and abs(seed) >= _DATA_SEED_LIMIT:
        problems.append(Problem("training.data_seed", "must be below 2**63", repr(seed)))
    named = {problem.key for problem in problems}
    for name, (low, inclusive) in _MINIMUM.items():
        value = rest.get(name)
        if value is None or f"training.{name}" in named:
            continue
        if value < low or (value == low and not inclusive):
            rule = f"must be {'at least' if inclusive else 'greater than'} {low}"
            problems.append(Problem(f"training.{name}", rule, repr(value)))
    for name in (*_FRACTIONS, *_BELOW_ONE):
        value, is_below = rest.get(name), name in _BELOW_ONE
        if not isinstance(value, int | float) or f"training.{name}" in named:
            continue
        if value > 1 or (is_below and value == 1):
            rule = "must be below 1" if is_below else "must be at most 1"
            problems.append(Problem(f"training.{name}", rule, repr(value)))
    steps = rest.get("max_steps")
    if isinstance(steps, int) and (steps == 0 or steps < -1) and "training.max_steps" not in named:
        rule = "at least 1, or -1 to train for num_train_epochs"
        problems.append(Problem("training.max_steps", rule, repr(steps)))
    for name in _STEPS:
        value = rest.get(name)
        if isinstance(value, float) and value > 1 and not value.is_integer():
            rule = "a whole number of steps, or below 1 a share of all"
            problems.append(Problem(f"training.{name}", rule, repr(value)))
    return [*problems, *_scheduler_problems(rest)]


def new_training_problems(training: Mapping[str, Any]) -> list[Problem]:
    """Every mistake under `training` of a configuration that no trial has been trained with yet."""
    refused = [
        Problem(f"training.{name}", f"{_plain(accepted[0])}: {reason}", _plain(training[name]))
        for name, (accepted, reason) in _WITHOUT_EFFECT.items()
        if name in training and training[name] not in accepted
    ]
    optim = training.get("optim", TRAINING_DEFAULTS["optim"])
    if training.get("optim_args") and optim in _TAKES_NO_OPTIM_ARGS:
        rule = f"null: transformers' {optim} takes none"
        refused.append(Problem("training.optim_args", rule, repr(training["optim_args"])))
    return [*training_problems(training), *refused]


def refused_training_arguments() -> frozenset[str]:
    """Training arguments of which a new configuration may give the default only."""
    return frozenset(_WITHOUT_EFFECT)


def _plain(value: Any) -> str:
    """A value as a YAML file has it, where that differs from Python's."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _scheduler_problems(training: Mapping[str, Any]) -> list[Problem]:
    """Keywords that a scheduler lacks; transformers refuses them only when a worker trains."""
    name, given = training.get("lr_scheduler_type"), training.get("lr_scheduler_kwargs")
    needed = _NEEDED_BY_SCHEDULER.get(name, ()) if isinstance(name, str) else ()
    if not needed or (isinstance(given, Mapping) and any(key in given for key in needed)):
        return []
    rule = f"{name} needs {' or '.join(needed)} here"
    return [Problem("training.lr_scheduler_kwargs", rule, "null" if given is None else repr(given))]


def _reporter_problems(given: Any) -> list[Problem]:
    """Trackers unknown to transformers, which refuses them only when a worker trains."""
    known = library_arguments.reporters()
    named = [given] if isinstance(given, str) else given if isinstance(given, list) else []
    wrong = [name for name in named if isinstance(name, str) and name not in known]
    return [replace(unknown(name, known, "tracker"), key="training.report_to") for name in wrong]


def lora_problems(lora: Mapping[str, Any]) -> list[Problem]:
    """Every mistake in keys of `lora` that are no `LoraSection` fields; pydantic checks those."""
    extra = {name: value for name, value in lora.items() if name not in LoraSection.model_fields}
    problems = []
    start = extra.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_RANDOM_START):
        del extra["init_lora_weights"]
        rule = "pissa: a random start is another one when the adapter is loaded"
        problems = [Problem("lora.init_lora_weights", rule, repr(start), "pissa")]
    if isinstance(start, str) and (reason := _UNMET_STARTS.get(start.lower())):
        del extra["init_lora_weights"]
        rule = f"a start that its name alone brings about: {start} {reason}"
        problems.append(Problem("lora.init_lora_weights", rule, repr(start), EVA))
    for name, reason in _UNMET_KEYS.items():
        if extra.get(name):
            rule = f"null: {reason}"
            problems.append(Problem(f"lora.{name}", rule, repr(extra.pop(name))))
    return [*problems, *lora_argument_problems(extra)]


def refused_lora_fields() -> tuple[str, ...]:
    """Fields of PEFT's `LoraConfig` that a new configuration may set to null only."""
    return tuple(_UNMET_KEYS)


def lora_argument_problems(arguments: Mapping[str, Any]) -> list[Problem]:
    """Names that PEFT's `LoraConfig` does not have, and values of another type than it takes."""
    return _argument_problems("lora", arguments, library_arguments.lora_arguments())


def adapter_problems(content: Mapping[str, Any]) -> list[Problem]:
    """What keys of `lora` and `training` need of other sections of a whole configuration."""
    lora = section if isinstance(section := content.get("lora"), Mapping) else {}
    problems = []
    if lora.get("init_lora_weights") == EVA and content.get("zero_stage") == _PARTITIONING_STAGE:
        rule = "at most 2: eva runs the base model, whose weights stage 3 has partitioned by then"
        problems.append(Problem("zero_stage", rule, "3"))
    if content.get("zero_stage") == _PARTITIONING_STAGE and _trains_base_weights(content, lora):
        rule = "at most 2: stage 3 takes adapter and base weights of one type only"
        problems.append(Problem("zero_stage", rule, "3"))
    training = section if isinstance(section := content.get("training"), Mapping) else {}
    if training.get(library_arguments.LORAPLUS_RATIO) is None:
        return problems
    optim = training.get("optim", TRAINING_DEFAULTS["optim"])
    if lora.get("r") == 0:
        rule = f"at least 1: {library_arguments.LORAPLUS_RATIO} is about A and B"
        problems.append(Problem("lora.r", rule, "0"))
    if any(part in str(optim) for part in _OWN_GROUPS):
        rule = f"an optimizer whose rates {library_arguments.LORAPLUS_RATIO} can set"
        problems.append(Problem("training.optim", rule, repr(optim), "adamw_torch"))
    return problems


def _trains_base_weights(content: Mapping[str, Any], lora: Mapping[str, Any]) -> bool:
    """Whether weights of a base model in a lower type are trained beside an adapter."""
    model = section if isinstance(section := content.get("model"), Mapping) else {}
    beside = lora.get("modules_to_save") or lora.get("trainable_token_indices")
    has_bias = lora.get("bias", "none") != "none"
    lower = model.get("dtype", "float32") != "float32"
    return bool(lower and lora.get("r", 8) and (beside or has_bias))


def gaudi_config_problems(given: Mapping[str, Any]) -> list[Problem]:
    """Every mistake in a GaudiConfig that is given as a mapping."""
    known = library_arguments.gaudi_config_keys()
    problems = []
    for name, value in given.items():
        key = f"gaudi_config.{name}"
        if name not in known:
            problems.append(unknown(key, tuple(known), "GaudiConfig key"))
        elif known[name] is bool and not isinstance(value, bool):
            problems.append(Problem(key, "true or false", repr(value)))
        elif known[name] is not bool and not _is_names(value):
            problems.append(Problem(key, "a list of operations, or null", repr(value)))
    return problems


def _is_names(value: Any) -> bool:
    return value is None or (
        isinstance(value, list) and all(isinstance(name, str) for name in value)
    )


def objective_problems(content: Mapping[str, Any]) -> list[Problem]:
    """Every mistake in the objective of a whole configuration, a missing user function included."""
    objective = content.get("objective", objective_registry.PLAIN)
    if problems := objective_registry.problems_of(objective):
        return problems
    evaluation = content.get("evaluation")
    metrics = evaluation.get("metrics") if isinstance(evaluation, Mapping) else None
    own = [name for name in metrics if isinstance(name, str)] if isinstance(metrics, list) else []
    return [*cross_section_problems(content), *objective_registry.code_problems(objective, own)]


def cross_section_problems(content: Mapping[str, Any]) -> list[Problem]:
    """What the objective of a whole configuration needs of the other sections and lacks there."""
    objective = content.get("objective", objective_registry.PLAIN)
    objective = {"name": objective} if isinstance(objective, str) else dict(objective)
    name = objective.pop("name", objective_registry.PLAIN)
    entry = objective_registry.find_objective(name)
    if name == objective_registry.PLAIN:
        return []
    data, lora, training = (
        section if isinstance(section := content.get(key), Mapping) else {}
        for key in ("data", "lora", "training")
    )
    problems = []
    if entry and entry.parts and data.get("forget_path") is None:
        problems.append(Problem("data.forget_path", f"what {name} is to forget", "null"))
    problems += _keep_problems(content, data)
    if entry and entry.reference:
        problems += _reference_problems(name, lora, training)
    if training.get("label_smoothing_factor"):
        got = repr(training["label_smoothing_factor"])
        problems.append(Problem("training.label_smoothing_factor", "0: only sft smooths", got))
    return problems


def _keep_problems(content: Mapping[str, Any], data: Mapping[str, Any]) -> list[Problem]:
    """With a forget set, `keep: best` chooses the step by `trade_off`, which must be measured."""
    evaluation = content.get("evaluation")
    metrics = evaluation.get("metrics") if isinstance(evaluation, Mapping) else None
    has_trade_off = not isinstance(metrics, list) or objective_registry.TRADE_OFF in metrics
    if has_trade_off or data.get("forget_path") is None or content.get("keep", "best") != "best":
        return []
    rule = f"last, or {objective_registry.TRADE_OFF} in evaluation.metrics: the best is told by it"
    return [Problem("keep", rule, "'best'")]


def _reference_problems(
    name: str, lora: Mapping[str, Any], training: Mapping[str, Any]
) -> list[Problem]:
    """Settings with which disabling the adapter would not restore the model before training."""
    why = f"{name} compares with the model whose adapter is disabled"
    problems = []
    if lora.get("r", 8) == 0:
        problems.append(Problem("lora.r", f"at least 1: {why}", "0"))
    if lora.get("bias", "none") != "none":
        problems.append(Problem("lora.bias", f"none: {why}", repr(lora["bias"])))
    start = lora.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE_WEIGHTS):
        rule = f"a start that leaves the base weights alone: {why}"
        problems.append(Problem("lora.init_lora_weights", rule, repr(start)))
    if training.get("use_hpu_graphs_for_training"):
        rule = f"false: {why}, and a recorded graph has it enabled"
        problems.append(Problem("training.use_hpu_graphs_for_training", rule, "true"))
    return problems


def _argument_problems(
    section: str, values: Mapping[str, Any], arguments: Mapping[str, library_arguments.Argument]
) -> list[Problem]:
    problems = []
    for name, value in values.items():
        key = f"{section}.{name}"
        if name not in arguments:
            known = [known for known in arguments if known not in SET_BY_HARNESS]
            problems.append(unknown(key, known, f"{section} argument"))
        elif refusal := arguments[name].refusal(value):
            near = nearest_choice(value, refusal)
            problems.append(Problem(key, f"expected {refusal}", repr(value), near))
    return problems


SECTION_RULES: dict[str, Callable[[Mapping[str, Any]], list[Problem]]] = {
    "training": new_training_problems,
    "lora": lora_problems,
    "gaudi_config": gaudi_config_problems,
}
"""The rules of a section alone, by its name, for a new configuration.

A trial's own folder is read by fewer rules: it may be older than one of these."""
