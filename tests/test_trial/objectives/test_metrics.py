"""Metrics of unlearning on hand-computed cases, and the evaluation sets they are taken from."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from helpers.training.models import question
from helpers.training.train import Material

from trial.config.errors import ConfigError
from trial.config.sections import DataConfig
from trial.config.trial_config import parse
from trial.data.epoch_sampler import EpochSampler
from trial.data.split import REFUSALS, read_alternatives, read_split
from trial.data.unlearning import WRONG_ANSWERS, PairedSampler, PartSampler
from trial.objectives import metrics
from trial.store import reference_ratios
from trial.store.metrics import EVALUATED, MAXIMIZED


def test_an_answers_probability_is_the_geometric_mean_over_its_tokens():
    losses = np.array([-math.log(0.25) - math.log(0.5) - math.log(0.5), 0.0])
    found = metrics.answer_probability(losses, np.array([3.0, 2.0]))
    assert found == pytest.approx([0.0625 ** (1 / 3), 1.0])
    assert metrics.per_token(np.array([3.0, 1.0]), np.array([3.0, 1.0])) == 1.0
    assert metrics.per_token(np.array([6.0, 1.0]), np.array([3.0, 1.0])) == 7 / 4


def test_the_truth_ratio_is_wrong_over_right():
    right, wrong = np.array([0.5, 0.2, 0.4]), np.array([0.1, 0.3, 0.4])
    ratios = metrics.truth_ratio(right, wrong, (0, 0, 1))
    assert ratios[:2] == pytest.approx([0.2 / 0.5, 0.4 / 0.2])
    assert math.isnan(ratios[2])
    assert metrics.forgotten_ratio(ratios) == pytest.approx((0.4 + 0.5) / 2)
    assert metrics.retained_ratio(ratios) == pytest.approx((0.6 + 0.0) / 2)


def largest_gap(one, other):
    """The Kolmogorov-Smirnov statistic, by its definition."""
    return max(
        abs(sum(a <= x for a in one) / len(one) - sum(b <= x for b in other) / len(other))
        for x in (*one, *other)
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [([1, 2, 3], [4, 5, 6]), ([1, 4, 5], [2, 3, 6]), ([1, 2, 3, 4], [1.5, 2.5, 9, 10])],
)
def test_forget_quality_is_the_exact_p_value_over_all_divisions(one, other):
    """Under no difference every division of the values into two groups is as likely."""
    pooled, seen = [*one, *other], largest_gap(one, other)
    divisions = list(itertools.combinations(range(len(pooled)), len(one)))
    as_far = 0
    for chosen in divisions:
        left = [pooled[i] for i in chosen]
        right = [pooled[i] for i in range(len(pooled)) if i not in chosen]
        as_far += largest_gap(left, right) >= seen - 1e-12
    found = metrics.forget_quality(np.array(one, float), np.array([*other, math.nan], float))
    assert found == pytest.approx(as_far / len(divisions))


@pytest.mark.parametrize(
    ("candidate", "reference", "recall"),
    [
        # Lin 2004, section 3.1: one subsequence of three of four words, one of two.
        ("police kill the gunman", "police killed the gunman", 3 / 4),
        ("the gunman kill police", "police killed the gunman", 2 / 4),
        ("The gunman, police killed!", "police killed the gunman", 2 / 4),
        ("a_b c", "a b", 1.0),
        ("", "a b", 0.0),
        ("a b", "...", 0.0),
        ("x a y b z", "a b", 1.0),
        ("ä ö", "Ö ä", 1 / 2),
    ],
)
def test_rouge_l_recall_is_the_longest_common_subsequence(candidate, reference, recall):
    assert metrics.rouge_l_recall(candidate, reference) == recall


def test_utility_and_trade_off_are_harmonic_means():
    assert metrics.harmonic_mean([0.5, 0.25, 1.0]) == pytest.approx(3 / (2 + 4 + 1))
    assert metrics.harmonic_mean([0.5, 0.0]) == 0.0
    assert metrics.trade_off(0.25, 0.5) == pytest.approx(2 / (1 / 0.75 + 1 / 0.5))
    assert metrics.trade_off(1.0, 0.9) == 0.0


def test_which_way_is_better():
    assert {name for name, way in EVALUATED.items() if way == "maximize"} < MAXIMIZED
    assert EVALUATED["forget_probability"] == EVALUATED["retain_loss"] == "minimize"
    assert {"trade_off", "model_utility", "forget_quality", "tokens_per_second"} <= MAXIMIZED


# Pairing


def order_of(epoch, *, rows=5, retain=7, choices=3):
    draws = [
        PartSampler("forget"),
        PartSampler("retain", rows=retain),
        PartSampler("alternative", choices=choices),
    ]
    order = PairedSampler(EpochSampler(rows, 4, 42), draws)
    order.set_epoch(epoch)
    return list(order)


def test_pairs_follow_from_seed_and_epoch_alone():
    first, second = order_of(0), order_of(1)
    assert first == order_of(0)
    assert first != second
    assert len(first) == 8
    for forget, retain, alternative in first + second:
        assert 0 <= retain < 7
        assert alternative // 3 == forget
    # Seven retained rows: all are used before one comes again.
    assert len({retain for _, retain, _ in first[:7]}) == 7
    # The first side stands as an ordinary trial's rows would.
    plain = EpochSampler(5, 4, 42)
    assert [forget for forget, _, _ in first] == list(plain)


# Reading


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_what_is_to_be_forgotten_is_not_retained(tmp_path):
    everything = write(tmp_path / "all.jsonl", [question(i) for i in range(40)])
    forget = write(tmp_path / "forget.jsonl", [question(i) for i in range(8)])
    split = read_split(DataConfig(path=everything, forget_path=forget, max_forget_samples=5))
    asked = {question(i)["question"] for i in range(8)}
    kept = {row.turns[0].content for row in (*split.train, *split.eval)}
    assert kept == {question(i)["question"] for i in range(40)} - asked
    assert len(split.forget) == 5
    assert split.alternatives == REFUSALS


@pytest.mark.parametrize(
    ("data", "key"),
    [
        ({"forget_path": "none.jsonl"}, "data.forget_path"),
        ({"forget_path": "all.jsonl"}, "data.path"),
        ({"forget_path": "few.jsonl", "alternatives": "none.txt"}, "data.alternatives"),
        ({"forget_path": "few.jsonl", "alternatives": ("", " ")}, "data.alternatives"),
        ({"forget_path": "few.jsonl", "alternative_column": "othr"}, "data.alternative_column"),
    ],
)
def test_a_forget_set_that_cannot_be_read_is_refused_by_its_key(tmp_path, monkeypatch, data, key):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "all.jsonl", [question(i) for i in range(8)])
    write(tmp_path / "few.jsonl", [{**question(i), "other": "no"} for i in range(2)])
    with pytest.raises(ConfigError) as caught:
        read_split(DataConfig(path="all.jsonl", **data))
    assert [problem.key for problem in caught.value.problems] == [key]


def test_alternatives_are_texts_or_lines(tmp_path):
    file = tmp_path / "no.txt"
    file.write_text("No.\n\n I forgot. \nNo.\n")
    assert read_alternatives(str(file)) == ("No.", "I forgot.")
    assert read_alternatives(("a", "b")) == ("a", "b")


# Measured on a model


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    made = Material(tmp_path_factory.mktemp("metrics"))
    rows = [
        {
            **question(200 + i),
            "paraphrased_answer": f"so {question(200 + i)['answer']}",
            "perturbed_answer": [f"stone {i}", f"moon {i}"][: 1 + i % 2],
        }
        for i in range(6)
    ]
    write(made.root / "forget.jsonl", rows)
    return made


def config_of(material, **evaluation):
    return material.config(
        data={"forget_path": str(material.root / "forget.jsonl"), "max_eval_samples": 6},
        training={"max_steps": 2, "eval_steps": 2, "per_device_eval_batch_size": 4},
        evaluation={"max_new_tokens": 5, "generate_rows": 3, **evaluation},
        lora={"lora_dropout": 0.0},
    )


def plain_likelihood(model, prompt, answer):
    """Length-normalised probability and log-probability of one answer, token by token."""
    ids, total = [*prompt, *answer], 0.0
    with torch.no_grad():
        log_probabilities = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    for place in range(len(prompt), len(ids)):
        total += log_probabilities[place - 1, ids[place]].item()
    return math.exp(total / len(answer)), total


def test_a_trials_metrics_equal_those_of_a_plain_loop(material):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, result = material.train(config_of(material))
    assert result.state == "complete", result.cause
    config = folder.read_config()
    tokenizer = AutoTokenizer.from_pretrained(config.model.name_or_path)
    base = AutoModelForCausalLM.from_pretrained(config.model.name_or_path)
    model = PeftModel.from_pretrained(base, folder.adapter).eval()
    split = read_split(config.data)

    def parts(row, answer):
        """Prompt and answer; a space that is a token by itself belongs to the prompt."""
        # This tokenizer puts no bos before a text.
        start, whole = (
            tokenizer(f"Question: {row.turns[0].content}\nAnswer:{end}").input_ids
            for end in ("", f" {answer}")
        )
        size = len(start) + (tokenizer.decode(whole[len(start)]) == " ")
        return whole[:size], [*whole[size:], tokenizer.eos_token_id]

    probability, ratios, loss, tokens, recalls = [], [], 0.0, 0, []
    for index, row in enumerate(split.forget):
        prompt, answer = parts(row, row.completion)
        right, total = plain_likelihood(model, prompt, answer)
        probability.append(right)
        loss, tokens = loss - total, tokens + len(answer)
        other = [plain_likelihood(model, *parts(row, text))[0] for text in row.perturbed]
        same = plain_likelihood(model, *parts(row, row.paraphrased))[0]
        ratios.append(np.mean(other) / same)
        if index < 3:
            made = model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=5,
                do_sample=False,
                pad_token_id=tokenizer.eos_token_id,
            )
            text = tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True)
            recalls.append(metrics.rouge_l_recall(text, row.completion))
    found = result.metrics
    assert found["forget_loss"] == pytest.approx(loss / tokens, abs=1e-5)
    assert found["forget_probability"] == pytest.approx(np.mean(probability), abs=1e-6)
    expected = np.mean([min(ratio, 1 / ratio) for ratio in ratios])
    assert found["forget_truth_ratio"] == pytest.approx(expected, abs=1e-5)
    assert found["forget_rouge_l"] == pytest.approx(np.mean(recalls))
    useful = [found[f"retain_{name}"] for name in ("probability", "truth_ratio", "rouge_l")]
    assert found["model_utility"] == pytest.approx(metrics.harmonic_mean(useful))
    assert sorted(reference_ratios.read_ratios(str(folder.path))) == pytest.approx(
        sorted(ratios), abs=1e-5
    )

    # A second trial is compared with the first: the same model has the same ratios.
    compared = {"metrics": ["forget_quality", "trade_off"], "retain_model": str(folder.path)}
    _, again = material.train(config_of(material, **compared))
    assert again.metrics["forget_quality"] == 1.0
    assert again.metrics.keys() >= {"forget_quality", "trade_off", "last_eval_loss"}
    assert "forget_loss" not in again.metrics


def test_rows_without_wrong_answers_take_those_of_others(material):
    from transformers import AutoTokenizer

    from trial.data.prepare import prepare

    config = config_of(material)
    tokenizer = AutoTokenizer.from_pretrained(config.model.name_or_path)
    tokenizer.pad_token = tokenizer.eos_token
    examined = prepare(config.data, tokenizer).unlearning.eval_sets
    assert examined["forget"].paraphrased is not None
    assert examined["retain"].paraphrased is None
    counts = np.bincount(examined["retain"].wrong_answer_rows)
    assert counts.tolist() == [WRONG_ANSWERS] * len(examined["retain"].answers)
    assert sorted(np.bincount(examined["forget"].wrong_answer_rows).tolist()) == [1, 1, 1, 2, 2, 2]


def test_a_comparison_with_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"evaluation\.retain_model"):
        reference_ratios.read_ratios(str(tmp_path))
    (tmp_path / "truth_ratios.json").write_text('{"forget": []}')
    with pytest.raises(ConfigError, match="truth ratios"):
        reference_ratios.read_ratios(str(tmp_path))
    assert parse({}).evaluation.retain_model is None
