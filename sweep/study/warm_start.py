"""Trials of earlier studies, copied into a new study's folder for its sampler.

`warm_start: [NAME]` in a sweep file. They are copied when the study is started, so that it can be
resumed without the earlier studies. `sweep.sampling.warm_start_sampler` uses them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sweep.sampling.warm_start_sampler import PriorTrial
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from sweep.study.fork import point_of
from trial.config.errors import ConfigError, Problem
from trial.store import metrics
from trial.store.files import read_lines, write_atomically
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Result


@dataclass(frozen=True, slots=True)
class PriorStudy:
    """The trials of one earlier study that the new one can use."""

    study: str
    trials: tuple[PriorTrial, ...]
    dropped: Counter[str]
    """Why other complete trials cannot be used, and how many."""

    def __str__(self) -> str:
        text = f"the sampler starts from {len(self.trials)} trials of {self.study}"
        left = "; ".join(f"{count} left out: {why}" for why, count in self.dropped.most_common(3))
        return f"{text} ({left})" if left else text


def collect_prior_studies(
    spec: SweepSpec, new: StudyFolder, studies: Sequence[StudyFolder]
) -> list[PriorStudy]:
    """Read the complete trials of earlier studies.

    Raises:
        ConfigError: one is no study, or has no trial that fits the new one.
    """
    found, problems = [], []
    for index, study in enumerate(studies):
        key = f"warm_start.{index}"
        if study.path.resolve() == new.path.resolve() or not study.exists():
            rule = "the name of another study that was run with the same --runs"
            problems.append(Problem(key, rule, repr(study.name)))
            continue
        found.append(_read_study(spec, study))
        if not found[-1].trials:
            rule = "a study with complete trials that lie in this space and have its objectives"
            problems.append(Problem(key, rule, str(found[-1])))
    if problems:
        raise ConfigError(problems)
    return found


def _read_study(spec: SweepSpec, study: StudyFolder) -> PriorStudy:
    before, after = SweepSpec.from_content(study.read_record().spec), Space.of(spec)
    trials: list[PriorTrial] = []
    results: dict[int, Result] = {}
    dropped: Counter[str] = Counter()
    for number, folder in study.all_trials():
        try:
            result = folder.read_result()
            if result is not None and result.state == "complete":
                trials += _read_trial(number, folder, result, spec, before, after)
                results[number] = result
        except ConfigError as error:
            dropped[str(error.problems[0])] += 1
        except (OSError, ValueError) as error:
            dropped[str(error)] += 1
    on = metrics.measured_on(results, [goal.metric for goal in spec.objectives])
    found = (trial.model_copy(update={"measured_on": on[trial.number]}) for trial in trials)
    return PriorStudy(study.name, tuple(found), dropped)


def _read_trial(
    number: int,
    folder: TrialFolder,
    result: Result,
    spec: SweepSpec,
    before: SweepSpec,
    after: Space,
) -> Iterator[PriorTrial]:
    """A complete trial as a point of the new space; nothing when it is no trial of a search."""
    config = folder.read_config()
    if config.origin is not None and not config.origin.searched:
        return
    params = after.encode_point(point_of(config, before, after))
    measured = [metrics.of_result(result, goal.metric) for goal in spec.objectives]
    values = tuple(value for value in measured if value is not None and math.isfinite(value))
    if len(values) < len(measured):
        raise ValueError("its objective was not measured")
    yield PriorTrial(
        study=before.name,
        number=number,
        params=dict(params),
        values=values,
        alike=before.base == spec.base,
    )


def write_prior_trials(folder: StudyFolder, studies: Sequence[PriorStudy]) -> None:
    """Keep the earlier trials in the new study's folder."""
    rows = [trial.model_dump_json() for study in studies for trial in study.trials]
    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.earlier, "".join(f"{row}\n" for row in rows))


def read_prior_trials(folder: StudyFolder) -> list[PriorTrial]:
    """The earlier trials that a study's folder keeps; none without `warm_start`."""
    if not folder.earlier.exists():
        return []
    return [PriorTrial.model_validate(row) for row in read_lines(folder.earlier)]
