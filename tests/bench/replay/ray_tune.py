"""Ray Tune as a decider, by its own classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from sweep.driver.interfaces import Proposal
from sweep.spec.dimension import Choices, Range
from trial.config.sections import EvaluationSection, Origin
from trial.config.trial_config import TrialConfig
from trial.store.records import Evaluation, Result


@dataclass
class RayTune:
    """Ray Tune's OptunaSearch and ASHA as a decider: what is stopped early is told as complete."""

    drawn: Mapping[str, Choices | Range]
    seed: int
    asha: dict[str, Any] = field(default_factory=dict)
    steps: list[int] | None = None
    """Evaluations, where they are not all that were recorded."""
    ready: Proposal | None = None
    """Drawn when the last one was taken, as Ray Tune's controller does."""

    def __post_init__(self) -> None:
        import optuna
        from ray import tune
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        def of(one: Choices | Range) -> Any:
            if isinstance(one, Choices):
                return tune.choice(list(one.choices))
            if one.step is not None:
                return tune.quniform(one.low, one.high, one.step)
            return tune.loguniform(one.low, one.high)

        searched = {name: of(one) for name, one in self.drawn.items()}
        searched = OptunaSearch.convert_search_space(searched)
        self.search = OptunaSearch(searched, metric="eval_loss", mode="min", seed=self.seed)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.scheduler = ASHAScheduler(metric="eval_loss", mode="min", **self.asha)
        self.count = 0
        self.last: dict[int, dict[str, Any]] = {}

    def ask(self) -> Proposal:
        taken = self.ready or self._draw()
        self.ready = self._draw()
        return taken

    def _draw(self) -> Proposal:
        number, self.count = self.count, self.count + 1
        drawn = self.search.suggest(f"t{number}")
        self.scheduler.on_trial_add(None, SimpleNamespace(trial_id=f"t{number}"))
        origin = Origin(study="replay", number=number, params=drawn)
        evaluation = EvaluationSection(steps=self.steps)
        return Proposal(number, drawn, TrialConfig(origin=origin, evaluation=evaluation))

    def report(self, number: int, evaluation: Evaluation) -> bool:
        trial = SimpleNamespace(trial_id=f"t{number}")
        iteration = self.last.get(number, {}).get("training_iteration", 0) + 1
        result = {"eval_loss": evaluation.eval_loss, "training_iteration": iteration}
        self.last[number] = result
        self.search.on_trial_result(trial.trial_id, result)
        return self.scheduler.on_trial_result(None, trial, result) == "STOP"

    def tell(self, number: int, result: Result) -> None:
        trial, last = SimpleNamespace(trial_id=f"t{number}"), self.last[number]
        self.scheduler.on_trial_complete(None, trial, last)
        self.search.on_trial_complete(trial.trial_id, last)

    def requeue(self, number: int) -> None: ...

    def confirmations(self) -> list[Proposal]:
        return []

    def pending(self) -> list[Proposal]:
        return []

    def finished(self) -> list[int]:
        return []
