"""Objectives: hand-computed values, finite differences, and any division of a step the same."""

import json
import math
from contextlib import contextmanager

import pytest
import torch
from helpers.training.models import question
from helpers.training.train import Material, Recorder

from trial.config import objective_registry
from trial.config.errors import ConfigError
from trial.config.trial_config import TrialConfig, parse, problems_of
from trial.objectives import losses
from trial.objectives.batch import BatchPart, Model, divide, step_counts
from trial.train import train

BASE = {"data": {"forget_path": "forget.jsonl"}}

# A bigram model of two words: P(next | word), now and before training.
NOW = {0: (1 / 4, 3 / 4), 1: (1 / 2, 1 / 2)}
BEFORE = {0: (1 / 2, 1 / 2), 1: (1 / 5, 4 / 5)}
# Rows of words, the length of the prompt (no labels), the length without padding.
FORGET = [([0, 0, 1], 1, 3), ([1, 0, 0], 2, 2)]
RETAIN = [([0, 1, 1], 1, 3), ([0, 1, 0], 1, 2)]
OTHER = [([0, 1, 0], 2, 3), ([1, 1, 1], 1, 3)]

LN = math.log
# The second forget row ends after its prompt: it has no completion and no loss.
FORGET_LOSSES = [LN(4) + LN(4 / 3), 0.0]
FORGET_REFERENCE = [LN(2) + LN(2), 0.0]
RETAIN_LOSSES = [LN(4 / 3) + LN(2), LN(4 / 3)]
OTHER_LOSSES = [LN(2), 2 * LN(2)]
OTHER_REFERENCE = [LN(5), 2 * LN(5 / 4)]
FORGET_MEAN = (LN(4) + LN(4 / 3)) / 2
RETAIN_MEAN = (LN(4 / 3) + LN(2) + LN(4 / 3)) / 3
OTHER_MEAN = 3 * LN(2) / 3
# KL(before || now) after word 0 and after word 1.
AFTER_0 = 1 / 2 * LN((1 / 2) / (1 / 4)) + 1 / 2 * LN((1 / 2) / (3 / 4))
AFTER_1 = 1 / 5 * LN((1 / 5) / (1 / 2)) + 4 / 5 * LN((4 / 5) / (1 / 2))


def log_sigmoid(x: float) -> float:
    return -LN(1 + math.exp(-x))


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


VALUES = [
    ("grad_ascent", {}, -FORGET_MEAN),
    ("grad_diff", {"retain_weight": 1.0}, -FORGET_MEAN + RETAIN_MEAN),
    ("grad_diff", {"retain_weight": 0.5}, -FORGET_MEAN + RETAIN_MEAN / 2),
    ("kl", {"retain_weight": 2.0}, -FORGET_MEAN + 2 * mean([(AFTER_0 + AFTER_1) / 2, AFTER_0])),
    ("kl", {"retain_weight": 0.0}, -FORGET_MEAN),
    ("idk", {"retain_weight": 1.0}, OTHER_MEAN + RETAIN_MEAN),
    (
        "dpo",
        {"beta": 0.5, "retain_weight": 1.0},
        mean(
            [
                -log_sigmoid(0.5 * ((o0 - o) - (f0 - f)))
                for o0, o, f0, f in zip(
                    OTHER_REFERENCE, OTHER_LOSSES, FORGET_REFERENCE, FORGET_LOSSES, strict=True
                )
            ]
        )
        + RETAIN_MEAN,
    ),
    (
        "npo",
        {"beta": 0.3, "retain_weight": 1.0},
        mean(
            [
                -2 / 0.3 * log_sigmoid(0.3 * (f - f0))
                for f, f0 in zip(FORGET_LOSSES, FORGET_REFERENCE, strict=True)
            ]
        )
        + RETAIN_MEAN,
    ),
    (
        "simnpo",
        {"beta": 2.0, "gamma": 0.25, "retain_weight": 0.0},
        mean([-log_sigmoid(2 * n / t - 0.25) for n, t in zip(FORGET_LOSSES, (2, 1), strict=True)]),
    ),
]


def columns_of(rows):
    """Tensors of rows: ids, labels, lengths; what stands after a row's end has no label."""
    ids = torch.tensor([row for row, _, _ in rows])
    labels = ids.clone()
    for index, (_, asked, length) in enumerate(rows):
        labels[index, :asked] = -100
        labels[index, length:] = -100
    lengths = torch.tensor([length for _, _, length in rows])
    return {
        "input_ids": ids,
        "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long(),
        "labels": labels,
        "lengths": lengths,
    }


PARTS = {"forget": FORGET, "retain": RETAIN, "alternative": OTHER}


def inputs_of(names, rows=slice(None)):
    parts = [columns_of(PARTS[name][rows]) for name in names]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class Table(torch.nn.Module):
    """Logits of the next word by the last; its adapter is the whole table."""

    def __init__(self, now: torch.Tensor, before: torch.Tensor):
        super().__init__()
        self.now, self.before, self.disabled = now, before, False

    @contextmanager
    def disable_adapter(self):
        self.disabled = True
        yield
        self.disabled = False

    def logits(self, inputs):
        return (self.before if self.disabled else self.now)[inputs["input_ids"]]


def table(probabilities):
    return torch.tensor([probabilities[0], probabilities[1]], dtype=torch.float64).log()


def loss_of(name, arguments, now, before=None, parts=(slice(None),)):
    """The loss of an optimizer step in so many batches."""
    module = Table(now, table(BEFORE) if before is None else before)
    names = objective_registry.batch_parts(name, arguments, forgets=True)
    batches = [inputs_of(names, part) for part in parts]
    counts = step_counts(batches, len(names))
    model = Model(module.logits, module)
    return sum(
        losses.compute(losses.FUNCTIONS[name], name, model, divide(batch, names, counts), arguments)
        for batch in batches
    )


@pytest.mark.parametrize(("name", "arguments", "expected"), VALUES)
def test_a_loss_is_the_hand_computed_one(name, arguments, expected):
    assert float(loss_of(name, arguments, table(NOW))) == pytest.approx(expected, rel=1e-9)


def test_every_objective_has_a_hand_computed_value():
    assert {name for name, _, _ in VALUES} | {"sft"} == set(objective_registry.OBJECTIVES)
    assert set(losses.FUNCTIONS) == set(objective_registry.OBJECTIVES)
    for name, arguments, _ in VALUES:
        assert set(arguments) == set(objective_registry.OBJECTIVES[name].arguments)


@pytest.mark.parametrize(("name", "arguments", "expected"), VALUES)
def test_a_gradient_is_that_of_finite_differences(name, arguments, expected):
    now = table(NOW).requires_grad_()
    assert torch.autograd.gradcheck(lambda now: loss_of(name, arguments, now), (now,))


@pytest.mark.parametrize(("name", "arguments", "expected"), VALUES)
def test_a_step_in_two_batches_is_the_step_in_one(name, arguments, expected):
    """The two rows have unlike numbers of tokens: a mean of means would differ."""
    whole, halves = (table(NOW).requires_grad_() for _ in range(2))
    one = loss_of(name, arguments, whole)
    two = loss_of(name, arguments, halves, parts=(slice(0, 1), slice(1, 2)))
    assert two.item() == pytest.approx(one.item(), rel=1e-12)
    one.backward()
    two.backward()
    assert torch.allclose(whole.grad, halves.grad, rtol=1e-10, atol=1e-12)


def test_padding_is_no_part_of_a_loss():
    """A row is as long as its tokens, whatever the batch beside it needs."""
    for name, arguments, expected in VALUES:
        names = objective_registry.batch_parts(name, arguments, forgets=True)
        batch = inputs_of(names)
        wider = {
            key: torch.nn.functional.pad(value, (0, 2), value=-100 if key == "labels" else 0)
            for key, value in batch.items()
            if key != "lengths"
        }
        wider["lengths"] = batch["lengths"]
        module = Table(table(NOW), table(BEFORE))
        model, counts = Model(module.logits, module), step_counts([wider], len(names))
        loss = losses.FUNCTIONS[name](model, divide(wider, names, counts), **arguments)
        assert float(loss) == pytest.approx(expected, rel=1e-9), name


def test_a_loss_that_is_no_number_is_refused():
    batch = divide(inputs_of(("forget",)), ("forget",), torch.ones(2, 1))
    model = Model(lambda inputs: inputs, None)
    with pytest.raises(ValueError, match=r"own must return .* one number.* shape \(2,\)"):
        losses.compute(lambda model, batch: torch.zeros(2), "own", model, batch, {})


def test_without_an_adapter_there_is_no_reference():
    batch = {"forget": BatchPart(**columns_of(FORGET), step_rows=1, step_tokens=1)}
    with pytest.raises(ValueError, match=r"lora\.r is 0"):
        Model(lambda inputs: inputs, torch.nn.Linear(1, 1)).reference(batch)


# Checks of a configuration


REFUSED = [
    ({"objective": "npp"}, "objective.name", "npo"),
    ({"objective": {"name": "npo", "bta": 1}, **BASE}, "objective.bta", "beta"),
    ({"objective": {"name": "sft", "beta": 1}}, "objective.beta", ""),
    ({"objective": {"name": "npo", "beta": 0}, **BASE}, "objective.beta", ""),
    ({"objective": {"name": "npo", "beta": "much"}, **BASE}, "objective.beta", ""),
    ({"objective": {"name": "npo", "retain_weight": -1}, **BASE}, "objective.retain_weight", ""),
    ({"objective": 3}, "objective", ""),
    ({"objective": "npo"}, "data.forget_path", ""),
    ({"objective": "npo", "lora": {"r": 0}, **BASE}, "lora.r", ""),
    ({"objective": "kl", "lora": {"bias": "all"}, **BASE}, "lora.bias", ""),
    (
        {"objective": "dpo", "lora": {"init_lora_weights": "pissa"}, **BASE},
        "lora.init_lora_weights",
        "",
    ),
    (
        {"objective": "npo", "training": {"use_hpu_graphs_for_training": True}, **BASE},
        "training.use_hpu_graphs_for_training",
        "",
    ),
    (
        {"objective": "npo", "training": {"label_smoothing_factor": 0.1}, **BASE},
        "training.label_smoothing_factor",
        "",
    ),
    ({"objective": "a b:c"}, "objective.name", ""),
    ({"objective": "no_such_module:f"}, "objective.name", ""),
    ({"objective": "helpers.training.objectives:weightd"}, "objective.name", "weighted"),
    (
        {"objective": {"name": "helpers.training.objectives:weighted", "wieght": 2}},
        "objective.wieght",
        "weight",
    ),
    ({"objective": "npo", "evaluation": {"metrics": ["forget_loss"]}, **BASE}, "keep", ""),
    (
        {"evaluation": {"metrics": ["helpers.training.objectives:nothing"]}},
        "evaluation.metrics.0",
        "",
    ),
]


@pytest.mark.parametrize(("content", "key", "near"), REFUSED)
def test_a_wrong_objective_is_refused_by_its_key(content, key, near):
    (problem,) = problems_of(content)
    assert (problem.key, problem.near) == (key, near)
    with pytest.raises(ConfigError, match=key):
        parse(content)


@pytest.mark.parametrize("name", ["grad_ascent", "grad_diff", "idk", "simnpo"])
def test_full_fine_tuning_needs_no_reference(name):
    assert parse({"objective": name, "lora": {"r": 0}, **BASE}).lora.r == 0


def test_a_name_alone_is_the_name_with_its_defaults():
    short = parse({"objective": "npo", **BASE})
    long = parse({"objective": {"name": "npo", "beta": 0.1, "retain_weight": 1.0}, **BASE})
    assert short.objective.arguments == {"beta": 0.1, "retain_weight": 1.0}
    assert short.fingerprint() == long.fingerprint()
    assert TrialConfig.model_validate_json(short.model_dump_json()) == short
    assert parse({}).objective.is_plain


# Training


STEPS = {
    "max_steps": 6,
    "eval_steps": 2,
    "logging_steps": 2,
    "learning_rate": 5e-3,
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 8,
}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    made = Material(tmp_path_factory.mktemp("objectives"))
    rows = [{**question(200 + i), "other": f"not {i % 3}"} for i in range(12)]
    (made.root / "forget.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def config_of(material, objective, **sections):
    data = {"forget_path": str(material.root / "forget.jsonl"), "max_eval_samples": 8}
    merged = {"data": data, "training": STEPS, "evaluation": {"metrics": ["forget_loss"]}}
    sections = {"keep": "last", **sections}
    for name, value in sections.items():
        merged[name] = {**merged.get(name, {}), **value} if isinstance(value, dict) else value
    return material.config(objective=objective, **merged)


def curve_of(folder):
    return [(row.eval_loss, row.metrics["forget_loss"]) for row in folder.read_evaluations()]


@pytest.fixture(scope="module")
def plain_npo(material):
    folder, result = material.train(config_of(material, "npo"))
    assert result.state == "complete", result.cause
    return folder, result


def test_training_raises_the_forget_loss_more_than_the_eval_loss(material, plain_npo):
    start = config_of(material, "npo", training={**STEPS, "max_steps": 1, "eval_on_start": True})
    first = material.train(start)[0].read_evaluations()[0]
    last = plain_npo[0].read_evaluations()[-1]
    risen = last.metrics["forget_loss"] - first.metrics["forget_loss"]
    assert risen > 0.05
    assert risen > last.eval_loss - first.eval_loss + 0.02
    assert plain_npo[1].metrics["forget_loss"] == last.metrics["forget_loss"]


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}},
        {"zero_stage": 0, "training": {"gradient_checkpointing": True}},
        {"zero_stage": 1, "training": {"per_device_train_batch_size": 1,
                                       "gradient_accumulation_steps": 4}},
        {"zero_stage": 2},
        {"zero_stage": 3},
    ],
    ids=str,
)  # fmt: skip
def test_npo_has_the_same_losses_with_every_setup(material, plain_npo, sections):
    """Dropout is on: its draws do not depend on the division of a step either."""
    training = {**STEPS, **sections.pop("training", {})}
    folder, result = material.train(config_of(material, "npo", training=training, **sections))
    assert result.state == "complete", result.cause
    for ours, theirs in zip(curve_of(folder), curve_of(plain_npo[0]), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize(
    ("objective", "data"),
    [
        ("dpo", {"alternatives": ["no", "none", "nothing"]}),
        ("idk", {"alternative_column": "other"}),
    ],
)
def test_an_interrupted_trial_goes_on_as_if_nothing_had_happened(material, objective, data):
    """Three steps an epoch: the second interrupt is in the second, with rows drawn anew."""
    metrics = ["forget_loss", "trade_off"]
    config = config_of(material, objective, data=data, keep="best", evaluation={"metrics": metrics})
    whole, reference = material.train(config)
    folder = material.folder(config)
    for asked in (2 + 2, 2 + 3):
        assert train(folder, Recorder("interrupt", asked), material.process_cache()) is None
    result = train(folder, None, material.process_cache())
    assert [row.resumed_from for row in folder.read_attempts()] == [0, 2, 5]
    assert curve_of(folder) == curve_of(whole)
    assert result.metrics == reference.metrics
    every = folder.read_evaluations()
    assert result.metrics["trade_off"] == max(row.metrics["trade_off"] for row in every)
    weights = "adapter/adapter_model.safetensors"
    assert (folder.path / weights).read_bytes() == (whole.path / weights).read_bytes()


def test_a_users_objective_and_a_users_metric(material):
    """A copy of sft trains as sft does; the metric is called at every evaluation."""
    metrics = {"metrics": ["helpers.training.objectives:rows_to_forget"]}
    own = {"name": "helpers.training.objectives:weighted", "weight": 1.0}
    config = config_of(material, own, evaluation=metrics)
    config = config.model_copy(
        update={"data": config.data.model_copy(update={"forget_path": None})}
    )
    folder, result = material.train(config)
    assert result.state == "complete", result.cause
    plain, _ = material.train(material.config(training=STEPS, data={"max_eval_samples": 8}))
    ours, theirs = ([row.eval_loss for row in f.read_evaluations()] for f in (folder, plain))
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert {row.metrics["rows_to_forget"] for row in folder.read_evaluations()} == {0.0}
