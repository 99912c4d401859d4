"""The metrics that an evaluation reports beside the eval loss: unlearning, and a user's own."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trial.config import user_functions
from trial.config.objective_registry import METRICS, is_user_function
from trial.config.sections import EvaluationSection
from trial.data.unlearning import EvalSet, UnlearningData
from trial.objectives import metrics
from trial.objectives.answers import Answers, EvalContext
from trial.store.files import write_atomically


class UnlearningEvaluator:
    """Measures a trial's evaluation sets, and keeps the truth ratios of the forget set."""

    def __init__(
        self,
        data: UnlearningData | None,
        settings: EvaluationSection,
        tokenizer: Any,
        retain_model_ratios: Sequence[float] | None = None,
    ) -> None:
        """Choose the metrics: those of `settings`, else all of unlearning if there is `data`.

        `retain_model_ratios` are truth ratios of a model that never saw the forget set.
        """
        self.data = data
        self.settings = settings
        self.tokenizer = tokenizer
        self.retain_model_ratios = (
            None if retain_model_ratios is None else np.array(retain_model_ratios, dtype=np.float64)
        )
        self.ratios: list[float] = []
        """Truth ratios of the forget set at the last evaluation."""
        names = settings.metrics
        self.names = tuple(METRICS if names is None and data is not None else names or ())

    def measure(self, context: EvalContext) -> dict[str, float]:
        """Every chosen metric by name, those left out that are not finite.

        Every rank must call this; each returns the metrics of all rows.

        Raises:
            ConfigError: a user's metric returned something that is no number.
        """
        eval_sets: Mapping[str, EvalSet] = self.data.eval_sets if self.data else {}
        answers = {
            name: Answers(eval_set, context, self.tokenizer, self.settings)
            for name, eval_set in eval_sets.items()
        }
        user_metrics = [name for name in self.names if is_user_function(name)]
        values = self._built_in(answers) if answers and len(user_metrics) < len(self.names) else {}
        values = {name: value for name, value in values.items() if name in self.names}
        for name in user_metrics:
            function = user_functions.load_function("evaluation.metrics", name)
            value = function(context.model, answers)
            values[name.rpartition(":")[2]] = user_functions.number(
                "evaluation.metrics", name, value
            )
        return {name: value for name, value in values.items() if math.isfinite(value)}

    def write_ratios(self, file: Path) -> None:
        """Write the last truth ratios, which other trials can be compared with."""
        if self.ratios:
            known = [ratio for ratio in self.ratios if math.isfinite(ratio)]
            write_atomically(file, json.dumps({"forget": known}) + "\n")

    def _built_in(self, answers: Mapping[str, Answers]) -> dict[str, float]:
        """Metrics by name. `model_utility` is TOFU's harmonic mean, over the retain set alone."""
        forget, retain = answers["forget"], answers["retain"]
        values = {
            "forget_loss": metrics.per_token(*forget.likelihood),
            "retain_loss": metrics.per_token(*retain.likelihood),
            "forget_probability": float(forget.probability.mean()),
            "retain_probability": float(retain.probability.mean()),
            "forget_truth_ratio": metrics.forgotten_ratio(forget.truth_ratio),
            "retain_truth_ratio": metrics.retained_ratio(retain.truth_ratio),
        }
        utility = [values["retain_probability"], values["retain_truth_ratio"]]
        # Generating text takes longest, so only if asked for.
        if any(name.endswith("rouge_l") for name in self.names):
            values["forget_rouge_l"] = forget.rouge_l
            values["retain_rouge_l"] = retain.rouge_l
            utility.append(values["retain_rouge_l"])
        self.ratios = forget.truth_ratio.tolist()
        if self.retain_model_ratios is not None:
            values["forget_quality"] = metrics.forget_quality(
                forget.truth_ratio, self.retain_model_ratios
            )
        values["model_utility"] = metrics.harmonic_mean(utility)
        values["trade_off"] = metrics.trade_off(
            values["forget_probability"], values["model_utility"]
        )
        return values
