"""The decider: an Optuna study that proposes trials, prunes them and is told their results.

The one writer of the study's storage is the driver that holds the study's lock.
"""

from __future__ import annotations

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
    set_memory_constraint,
    worst_values,
)
from sweep.sampling.known_configurations import KnownConfigurations
from sweep.sampling.measured_alike import AlikePruning
from sweep.sampling.pruners import make_pruner
from sweep.sampling.samplers import make_sampler
from sweep.sampling.warm_start_sampler import PriorTrial, WarmStartSampler
from sweep.spec import hpu_shapes
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from sweep.storage import compat
from sweep.study import retrained
from sweep.study.confirmations import OUTSIDE_SEARCH, missing_repeats
from sweep.study.proposed import proposed_config, stored_config
from trial.config.errors import ConfigError
from trial.config.trial_config import TrialConfig
from trial.store import metrics
from trial.store.records import Evaluation, Result

MAX_DUPLICATES = 20
"""More duplicates in a row than this mean that the sampler has nothing new to propose."""

OWNER = "folder_created"
"""User attribute of the study: when its folder was created. Tells two folders apart that want the
same study name in one storage."""

ASK_SECONDS = {"gp": 3.0}
"""Seconds that one `ask` takes at least, by sampler, once there are trials to learn from."""


class OptunaDecider:
    """Asks and tells one Optuna study.

    `ask` may run in one thread while `report` and `tell` are called in another, as Optuna's own
    `n_jobs` does: storages lock themselves, and the methods share only `_in_flight`, a dictionary
    whose single operations are atomic.
    """

    def __init__(
        self, spec: SweepSpec, name: str, storage: BaseStorage, prior: Sequence[PriorTrial] = ()
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        compat.ignore_cmaes_warning()
        self.spec, self.storage = spec, storage
        self.space = Space.of(spec)
        self._metrics = tuple(goal.metric for goal in spec.objectives)
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=[objective.direction for objective in spec.objectives],
            load_if_exists=True,
        )
        past = self.study.get_trials(deepcopy=False)
        # The same seed after a resume would repeat the draws made before it, or those of the study
        # that this one starts from.
        drawn = len(past) + len(prior)
        seed = None if spec.sampler.seed is None else f"{spec.sampler.seed}/{drawn}"
        self._random = random.Random(seed)
        sampler = make_sampler(spec, self._random.getrandbits(31))
        self.study.sampler = WarmStartSampler(sampler, prior, self.space) if prior else sampler
        self.study.pruner = make_pruner(spec)
        self._pruning = AlikePruning(self.study, past)
        self.ask_seconds = ASK_SECONDS.get(spec.sampler.name, 0.0)
        self._in_flight: dict[int, Trial] = {}
        self._retrained: dict[int, FrozenTrial] = {}
        """Finished trials that are trained anew, by number."""
        self._known = KnownConfigurations(spec, self.space, past)
        self._duplicates = 0
        """Duplicates drawn in a row."""
        self._exhausted = False
        self._grid = self._known.untried()
        self._enqueue(past)

    def _enqueue(self, past: list[FrozenTrial]) -> None:
        """Enqueue the points of `enqueue` that the study lacks: a kill may have come after some."""
        enqueued = {_canonical(compat.enqueued_params(trial)) for trial in past}
        points = list(self.spec.enqueue)
        if hpu_shapes.is_for_hpu(self.spec):
            points = hpu_shapes.grouped_by_shape(points, lambda point: point)
        for point in points:
            params = dict(self.space.encode_point(point))
            if _canonical(params) not in enqueued:
                self.study.enqueue_trial(params)

    # Asking

    def ask(self) -> Proposal | None:
        """The next trial; None when the space is exhausted."""
        if self._exhausted:
            return None
        if self.spec.sampler.name == "grid":
            return self._ask_grid()
        proposal = self._propose(self.study.ask())
        if proposal.duplicate_of is None:
            self._duplicates = 0
        else:
            self._count_duplicate()
        return proposal

    def _count_duplicate(self) -> None:
        """In a small space, enqueue an untried point; in a large one, allow MAX_DUPLICATES."""
        self._duplicates += 1
        self._exhausted = self._duplicates > MAX_DUPLICATES
        if self._known.enumerable():
            untried = list(self._known.untried())
            self._exhausted = not untried
            if untried:
                self.study.enqueue_trial(dict(self._random.choice(untried)))

    def _ask_grid(self) -> Proposal | None:
        # Points already in the queue come first: a kill may have left one there.
        if not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            point = next(self._grid, None)
            if point is None:
                return None
            self.study.enqueue_trial(dict(point))
        return self._propose(self.study.ask())

    def _propose(self, trial: Trial) -> Proposal:
        params = self.space.suggest(trial)
        self._in_flight[trial.number] = trial
        config, problem = None, ""
        try:
            config = proposed_config(self.space, trial.number, params, trial.user_attrs)
        except ConfigError as error:
            problem = str(error)
        fingerprint = config.fingerprint() if config else _canonical(params)
        duplicate_of = self._known.add(fingerprint, trial.number)
        return Proposal(trial.number, params, config, duplicate_of, problem)

    def requeue(self, number: int) -> None:
        """Put a proposal that was never started into Optuna's queue, where `ask` looks first."""
        compat.set_waiting(self.study, self._in_flight.pop(number))

    def confirmations(self) -> Iterator[Proposal]:
        """The best configurations once more, each with the seeds it has not had yet."""
        trials = self.study.get_trials(deepcopy=False)
        for repeat in missing_repeats(trials, self.spec, self.space):
            yield self._propose(
                compat.create_running_trial(self.study, repeat.params, repeat.user_attrs())
            )

    def preview(self, count: int) -> list[TrialConfig]:
        """The configurations of the first proposals of a fresh study, without training any."""
        configs: list[TrialConfig] = []
        while len(configs) < count and (proposal := self.ask()) is not None:
            if proposal.config and proposal.trainable:
                configs.append(proposal.config)
        return configs

    # Training a finished trial for longer

    def add_extension(self, number: int, config: TrialConfig) -> int:
        """Create a trial in flight that continues a finished one; returns its number."""
        source = next(t for t in self.study.get_trials(deepcopy=False) if t.number == number)
        marks = {"continues": number, "config": config.model_dump_json()}
        trial = compat.create_running_trial(self.study, source.params, marks)
        self.space.suggest(trial)
        return trial.number

    def extensions(self, number: int) -> dict[int, TrialConfig]:
        """Trials that continue a finished one, by number, but for failed and pruned ones."""
        return {
            trial.number: stored_config(trial.user_attrs["config"])
            for trial in self.study.get_trials(deepcopy=False)
            if trial.user_attrs.get("continues") == number
            and trial.state not in (TrialState.FAIL, TrialState.PRUNED)
        }

    # Resuming

    def pending(self) -> list[Proposal]:
        """Trials in flight when the study was last left, under their own numbers."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        return [self._propose(compat.running_trial(self.study, trial)) for trial in trials]

    def finished(self) -> list[int]:
        """Numbers of the trials that have ended."""
        trials = self.study.get_trials(deepcopy=False)
        return [trial.number for trial in trials if trial.state.is_finished()]

    def again(self, number: int) -> Proposal | Result:
        """A finished trial whose result is lost: the result if it is known, or what to train.

        What it then reports and comes to is not told once more.
        """
        trial = next(t for t in self.study.get_trials(deepcopy=False) if t.number == number)
        if (known := retrained.told_result(trial)) is not None:
            return known
        self._retrained[number] = trial
        config = proposed_config(self.space, number, trial.params, trial.user_attrs)
        return Proposal(number, trial.params, config)

    def numbers(self) -> set[int]:
        """Numbers of all trials that were ever started or enqueued."""
        return {trial.number for trial in self.study.get_trials(deepcopy=False)}

    def belongs_to(self, created: float) -> bool:
        """Whether the study is that of the folder created then; claims a study without owner."""
        owner = self.study.user_attrs.get(OWNER)
        if owner is None:
            self.study.set_user_attr(OWNER, created)
        return owner in (None, created)

    # Telling

    def report(self, number: int, evaluation: Evaluation) -> bool:
        """Report an evaluation; True to prune. A step already known is not reported twice.

        The pruner compares the trial with those that were measured on the same things.
        """
        if len(self.spec.objectives) > 1:
            return False
        if number in self._retrained:
            return retrained.was_pruned_at(self._retrained[number], evaluation.step)
        trial = self._in_flight[number]
        objective = metrics.of_evaluation(evaluation, self.spec.objectives[0].metric)
        # Before the first step all trials are the same model: nothing to prune by.
        if objective is None or evaluation.step <= 0:
            return False
        self._pruning.note(trial, metrics.evaluation_measured_on(evaluation, self._metrics))
        if not compat.is_reported(trial, evaluation.step):
            trial.report(objective, evaluation.step)
        return not OUTSIDE_SEARCH & trial.user_attrs.keys() and self._pruning.should_prune(trial)

    def tell(self, number: int, result: Result) -> None:
        """Tell Optuna how a trial ended: complete, pruned at its step, infeasible or failed.

        A duplicate is told as failed, which samplers ignore: it teaches them nothing new.
        """
        compat.refuse_deleted(self.study)
        if number in self._retrained:
            retrained.compare(self._retrained.pop(number), result, self._metrics)
            return
        trial = self._in_flight.pop(number)
        if result.state == "duplicate":
            trial.set_user_attr("duplicate_of", result.duplicate_of)
            self.study.tell(trial, state=TrialState.FAIL)
            return
        kind = result.cause.kind if result.cause else None
        if result.cause:
            trial.set_user_attr("cause", f"{kind}: {result.cause.message}")
        if result.best_step is not None:
            trial.set_user_attr("best_step", result.best_step)
        measured = [metrics.of_result(result, metric) for metric in self._metrics]
        values = [value for value in measured if value is not None and math.isfinite(value)]
        if kind == "out_of_memory":
            self._tell_infeasible(trial)
        elif result.state == "complete" and len(values) == len(measured):
            # GPSampler wants the same constraints of all trials.
            set_memory_constraint(trial, FEASIBLE)
            if result.data is not None:
                # The choice of what is confirmed goes by it.
                on = metrics.measured_on({number: result}, self._metrics)[number]
                self._pruning.note(trial, on)
            self.study.tell(trial, values)
        elif result.state == "pruned" or kind == "diverged":
            # Samplers ignore failed trials, and a divergence says something of the parameters.
            self.study.tell(trial, state=self._pruned_state())
        else:
            self.study.tell(trial, state=TrialState.FAIL)

    def _tell_infeasible(self, trial: Trial) -> None:
        """Tell a violated constraint with the worst values so far.

        Without values only TPE would learn from it. Before any trial is complete there are none.
        """
        set_memory_constraint(trial, INFEASIBLE)
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if worst := worst_values(complete, self.study.directions):
            self.study.tell(trial, worst)
        else:
            self.study.tell(trial, state=self._pruned_state())

    def _pruned_state(self) -> TrialState:
        """Optuna has no pruned trials with several objectives."""
        return TrialState.FAIL if len(self.spec.objectives) > 1 else TrialState.PRUNED


def _canonical(params: Mapping[str, Any] | None) -> str:
    return json.dumps(params, sort_keys=True)
