"""The decider: an Optuna study that proposes, prunes, and remembers. Optuna's only home.

The journal is the sampler's memory; its one writer is the driver that holds the study's lease.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from sweep.driver.interfaces import Proposal
from sweep.sampling.constraints import (
    FEASIBLE,
    INFEASIBLE,
    is_feasible,
    set_memory_constraint,
    worst_values,
)
from sweep.spec import hpu_shapes
from sweep.spec.grid import grid_points, grid_size
from sweep.spec.space import Space
from sweep.spec.spec import ConfirmSpec, SweepSpec
from sweep.study.samplers import make_pruner, make_sampler
from sweep.study.warm_start import PriorTrial, WarmSampler
from trial.config.errors import ConfigError
from trial.config.trial_config import TrialConfig
from trial.store import metrics
from trial.store.records import Evaluation, Result

REDRAWS = 20
"""So many known configurations in a row mean that the sampler has nothing new to say."""

ENUMERABLE = 10_000
"""Spaces up to this size are searched for an untried point when the sampler repeats itself."""

OWNER = "folder_created"
"""The study's mark of its folder: in a storage of many studies, two folders may want one name."""

_FAILED = (TrialState.FAIL, TrialState.PRUNED)

_OUTSIDE = {"confirms", "continues"}
"""Marks of trials that are no part of the search: never pruned, never repeated."""


ASK_SECONDS = {"gp": 3.0}
"""What an ask is known to take, by sampler, once there are trials to learn from."""


class OptunaDecider:
    """Asks and tells one Optuna study.

    `ask` may run in one thread while `report` and `tell` are called in another, as Optuna's own
    `n_jobs` does: storages lock themselves, and what `ask` alone writes here no other method does.
    """

    def __init__(
        self, spec: SweepSpec, name: str, storage: BaseStorage, earlier: Sequence[PriorTrial] = ()
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        # CMA-ES learns from the value that comes with it.
        warnings.filterwarnings("ignore", message="Constraints have been set, but CmaEsSampler")
        self.spec = spec
        self.space = Space.of(spec)
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=[objective.direction for objective in spec.objectives],
            load_if_exists=True,
        )
        past = self.study.get_trials(deepcopy=False)
        # The same seed after a resume would repeat the draws made before it, or those of the study
        # that this one starts from.
        drawn = len(past) + len(earlier)
        self._draws = random.Random(f"{spec.sampler.seed}/{drawn}" if _seeded(spec) else None)
        sampler = make_sampler(spec, self._draws.getrandbits(31))
        self.study.sampler = WarmSampler(sampler, earlier, self.space) if earlier else sampler
        self.study.pruner = make_pruner(spec)
        self.ask_seconds = ASK_SECONDS.get(spec.sampler.name, 0.0)
        self._open: dict[int, Trial] = {}
        self._known: dict[str, int] = {}
        """Number of the first trial by fingerprint."""
        self._repeats = 0
        self._exhausted = False
        self._walk = self._untried()
        self._enqueue(past)
        self._remember(past)

    def _enqueue(self, past: list[FrozenTrial]) -> None:
        """Enqueue the known-good points; a kill may have come after some of them."""
        there = {_canonical(trial.system_attrs.get("fixed_params")) for trial in past}
        points = list(self.spec.enqueue)
        if hpu_shapes.is_for_hpu(self.spec):
            points = hpu_shapes.together(points, lambda point: point)
        for point in points:
            fixed = dict(self.space.encode_point(point))
            if _canonical(fixed) not in there:
                self.study.enqueue_trial(fixed)

    def _remember(self, past: list[FrozenTrial]) -> None:
        for trial in past:
            if trial.state.is_finished() and "duplicate_of" not in trial.user_attrs:
                with contextlib.suppress(ConfigError, KeyError):
                    config = self.space.configure(trial.params, trial.number)
                    self._known.setdefault(config.fingerprint(), trial.number)

    # Asking

    def ask(self) -> Proposal | None:
        """The next trial; None when the space is exhausted."""
        if self._exhausted:
            return None
        if self.spec.sampler.name == "grid":
            return self._ask_grid()
        proposal = self._propose(self.study.ask())
        if proposal.duplicate_of is None:
            self._repeats = 0
        else:
            self._repeated()
        return proposal

    def _repeated(self) -> None:
        """In a small space, enqueue a point nobody has tried; in a large one, bear some repeats."""
        self._repeats += 1
        self._exhausted = self._repeats > REDRAWS
        if self._enumerable():
            untried = list(self._untried())
            self._exhausted = not untried
            if untried:
                self.study.enqueue_trial(dict(self._draws.choice(untried)))

    def _enumerable(self) -> bool:
        try:
            size = grid_size(self.space)
        except ValueError:
            return False
        return size is not None and size <= ENUMERABLE

    def _ask_grid(self) -> Proposal | None:
        # Points already in the queue come first: a kill may have left one there.
        if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            point = next(self._walk, None)
            if point is None:
                return None
            self.study.enqueue_trial(dict(point))
        return self._propose(self.study.ask())

    def _untried(self) -> Iterator[Mapping[str, Any]]:
        """Points of the space that nobody has tried at the moment they are asked for."""
        points = grid_points(self.space)
        if hpu_shapes.is_for_hpu(self.spec):
            points = hpu_shapes.together(points, self._meant)
        for point in points:
            try:
                config = self.space.configure(point, None)
            except ConfigError:
                continue
            if config.fingerprint() not in self._known:
                yield point

    def _meant(self, point: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a point means by dotted path; nothing when it means nothing."""
        try:
            return self.space.values(point)
        except ConfigError:
            return {}

    def _propose(self, trial: Trial) -> Proposal:
        params = self.space.suggest(trial)
        self._open[trial.number] = trial
        config, problem = None, ""
        try:
            config = self.space.configure(params, trial.number)
        except ConfigError as error:
            problem = str(error)
        if config and (confirms := trial.user_attrs.get("confirms")) is not None:
            config = _reseeded(config, confirms, trial.user_attrs["seed"])
        if (longer := trial.user_attrs.get("config")) is not None:
            config = renumbered(TrialConfig.model_validate_json(longer), trial.number)
        same = config.fingerprint() if config else json.dumps(params, sort_keys=True)
        known = self._known.setdefault(same, trial.number)
        original = known if known != trial.number else None
        return Proposal(trial.number, params, config, original, problem)

    # Confirming

    def confirmations(self) -> Iterator[Proposal]:
        """The best configurations once more, each with the seeds it has not had yet."""
        confirm = self.spec.confirm
        if confirm is None:
            return
        trials = self.study.get_trials(deepcopy=False)
        had = {
            (trial.user_attrs["confirms"], trial.user_attrs["seed"])
            for trial in trials
            if "confirms" in trial.user_attrs
        }
        for best in self._best(trials, confirm):
            first = self.space.configure(best.params).training["seed"]
            for seed in range(first + 1, first + confirm.seeds):
                if (best.number, seed) not in had:
                    attributes = {"confirms": best.number, "seed": seed}
                    yield self._propose(self._begin(best.params, attributes))

    def _best(self, trials: list[FrozenTrial], confirm: ConfirmSpec) -> list[FrozenTrial]:
        """The best trials of the search, or of each value of what `confirm.per` names."""
        alike: dict[str, list[FrozenTrial]] = {}
        for trial in trials:
            searched = is_feasible(trial) and not _OUTSIDE & trial.user_attrs.keys()
            if trial.state == TrialState.COMPLETE and searched:
                values = self.space.values(trial.params) if confirm.per else {}
                alike.setdefault(_canonical(values.get(confirm.per or "")), []).append(trial)
        goals = self.spec.objectives
        signs = [-1.0 if goal.direction == "maximize" else 1.0 for goal in goals]
        best = []
        for done in alike.values():
            points = [[s * v for s, v in zip(signs, t.values, strict=True)] for t in done]
            best += [done[place] for place in metrics.best_of(points, confirm.top)]
        return best

    # Going on for longer

    def prolong(self, number: int, config: TrialConfig) -> int:
        """Number a trial that goes on where a finished one ended, and leave it in flight."""
        source = next(t for t in self.study.get_trials(deepcopy=False) if t.number == number)
        attributes = {"continues": number, "config": config.model_dump_json()}
        trial = self._begin(source.params, attributes)
        self.space.suggest(trial)
        return trial.number

    def prolonged(self, number: int) -> dict[int, TrialConfig]:
        """Trials that go on where a finished one ended, by number; those that failed left out."""
        return {
            trial.number: TrialConfig.model_validate_json(trial.user_attrs["config"])
            for trial in self.study.get_trials(deepcopy=False)
            if trial.user_attrs.get("continues") == number and trial.state not in _FAILED
        }

    def _begin(self, params: Mapping[str, Any], attributes: Mapping[str, Any]) -> Trial:
        """A trial in flight that is to draw these values, whatever else waits to be asked for."""
        fixed = {"fixed_params": dict(params)}
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING, user_attrs=dict(attributes), system_attrs=fixed
        )
        storage, study_id = self.study._storage, self.study._study_id
        return Trial(self.study, storage.create_new_trial(study_id, template))

    # Coming back

    def pending(self) -> list[Proposal]:
        """Trials in flight when the study was last left, under their own numbers."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [self._propose(Trial(self.study, trial._trial_id)) for trial in trials]

    def finished(self) -> list[int]:
        """Numbers of the trials that have ended."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial.number for trial in trials if trial.state.is_finished()]

    def belongs_to(self, created: float) -> bool:
        """Whether it is the study of the folder that was made then; one that nobody has is now."""
        owner = self.study.user_attrs.get(OWNER)
        if owner is None:
            self.study.set_user_attr(OWNER, created)
        return owner in (None, created)

    def numbered(self) -> set[int]:
        """Numbers of all trials that were ever started or enqueued."""
        return {trial.number for trial in self.study.get_trials(deepcopy=False)}

    def requeue(self, number: int) -> None:
        """A proposal that was never started waits in Optuna's queue, where `ask` looks first."""
        trial = self._open.pop(number)
        self.study._storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    # Telling

    def report(self, number: int, evaluation: Evaluation) -> bool:
        """Take an evaluation in; True to prune. A step already known is not reported twice."""
        if len(self.spec.objectives) > 1:
            return False
        trial = self._open[number]
        value = metrics.of_evaluation(evaluation, self.spec.objectives[0].metric)
        # Before the first step all trials are the same model: nothing to judge.
        if value is None or evaluation.step <= 0:
            return False
        if evaluation.step not in trial._cached_frozen_trial.intermediate_values:
            trial.report(value, evaluation.step)
        return not _OUTSIDE & trial.user_attrs.keys() and trial.should_prune()

    def tell(self, number: int, result: Result) -> None:
        """Tell Optuna the truth: complete, pruned at its step, or failed."""
        if result.state == "duplicate":
            self.tell_duplicate(number, result.duplicate_of)
            return
        trial = self._open.pop(number)
        self._annotate(trial, result)
        if result.cause and result.cause.kind == "out_of_memory":
            self._tell_infeasible(trial)
            return
        values = [metrics.of_result(result, goal.metric) for goal in self.spec.objectives]
        finite = [value for value in values if value is not None and math.isfinite(value)]
        if result.state == "complete" and len(finite) == len(values):
            # GP wants the same constraints of all: it could not learn from one that is violated.
            set_memory_constraint(trial, FEASIBLE)
            self.study.tell(trial, finite)
        elif result.state == "pruned" or _teaches(result):
            self.study.tell(trial, state=self._pruned_state())
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def _tell_infeasible(self, trial: Trial) -> None:
        """A violated constraint, and the worst values so far: only TPE sees a trial without any.

        Before any trial is complete there are none to give.
        """
        set_memory_constraint(trial, INFEASIBLE)
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        worst = worst_values(complete, self.study.directions)
        self.study.tell(trial, worst, state=None if worst else self._pruned_state())

    def _pruned_state(self) -> TrialState:
        """Optuna has no pruned trials with several objectives."""
        return TrialState.FAIL if len(self.spec.objectives) > 1 else TrialState.PRUNED

    def _annotate(self, trial: Trial, result: Result) -> None:
        if result.cause:
            trial.set_user_attr("cause", f"{result.cause.kind}: {result.cause.message}")
        if result.best_step is not None:
            trial.set_user_attr("best_step", result.best_step)

    def tell_duplicate(self, number: int, original: int | None) -> None:
        """A repeat is not trained; the sampler is told nothing it does not know."""
        trial = self._open.pop(number)
        trial.set_user_attr("duplicate_of", original)
        self.study.tell(trial, state=TrialState.FAIL)

    def preview(self, count: int) -> list[TrialConfig]:
        """The first proposals of a fresh study, without training anything."""
        shown: list[TrialConfig] = []
        while len(shown) < count and (proposal := self.ask()) is not None:
            if proposal.config and proposal.duplicate_of is None:
                shown.append(proposal.config)
        return shown


def renumbered(config: TrialConfig, number: int) -> TrialConfig:
    """The same configuration as another trial's."""
    if config.origin is None:
        return config
    return config.model_copy(update={"origin": config.origin.model_copy(update={"number": number})})


def _reseeded(config: TrialConfig, confirms: int, seed: int) -> TrialConfig:
    """The same configuration with another seed: adapter, data order and dropout differ."""
    if config.origin is None:
        return config
    origin = config.origin.model_copy(update={"confirms": confirms})
    training = {**config.training, "seed": seed}
    return config.model_copy(update={"training": training, "origin": origin})


def _canonical(params: Any) -> str:
    return json.dumps(params, sort_keys=True)


def _teaches(result: Result) -> bool:
    """Whether a failure says something about the parameters: Optuna's samplers pass over FAIL."""
    return result.cause is not None and result.cause.kind == "diverged"


def _seeded(spec: SweepSpec) -> bool:
    return spec.sampler.seed is not None
