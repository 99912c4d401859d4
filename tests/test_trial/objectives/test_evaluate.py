"""Metrics of a user that an evaluation reports."""

from __future__ import annotations

import pytest

from trial.config.errors import ConfigError
from trial.config.sections import EvaluationSection
from trial.objectives.answers import EvalContext
from trial.objectives.evaluate import UnlearningEvaluator
from trial.store.metrics import of_evaluation
from trial.store.records import Evaluation


def measured(function: str) -> dict[str, float]:
    settings = EvaluationSection(metrics=[f"helpers.training.objectives:{function}"])
    context = EvalContext(None, None, 1, None, None)
    return UnlearningEvaluator(None, settings, None).measure(context)


def test_a_metric_that_returns_text_is_no_metric():
    assert measured("rows_to_forget") == {"rows_to_forget": 0.0}
    with pytest.raises(ConfigError, match=r"in_digits returned '3\.5', of type str"):
        measured("in_digits")


def test_a_metric_that_is_read_from_a_file_is_no_text():
    row = {"step": 1, "eval_loss": 2, "metrics": {"mine": 3}}
    assert of_evaluation(Evaluation.model_validate(row), "mine") == 3.0
    for wrong in ({"eval_loss": "2.0"}, {"metrics": {"mine": "3.5"}}):
        with pytest.raises(ValueError, match="valid number"):
            Evaluation.model_validate(row | wrong)
