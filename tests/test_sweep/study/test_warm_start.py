"""`warm_start`: studies whose sampler starts from the trials of earlier ones."""

from __future__ import annotations

import math
import random

import numpy as np
import optuna
import pytest

from sweep.loading.loader import load
from sweep.sampling.warm_start_sampler import (
    PriorTrial,
    WarmStartSampler,
    match_quantiles,
    on_one_scale,
)
from sweep.spec.dimension import Choices, Range
from sweep.spec.space import Space
from sweep.spec.spec import ObjectiveSpec, SamplerSpec, SweepSpec
from sweep.storage.open import in_memory, open_storage
from sweep.study.decider import OptunaDecider
from sweep.study.warm_start import (
    collect_prior_studies,
    read_prior_trials,
    write_prior_trials,
)
from trial.config.errors import ConfigError
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import DataSummary, Result, StudyRecord

RATE = Range(type="float", low=1e-5, high=1e-1, log=True)
BEST = 1e-3


def make_spec(steps: int = 10, **changes) -> SweepSpec:
    given = {
        "name": "earlier",
        "base": {"training": {"max_steps": steps}},
        "space": {"training.learning_rate": (RATE,), "lora.r": (Choices(choices=(2, 4, 8)),)},
        "sampler": SamplerSpec(name="random", seed=1),
        **changes,
    }
    return SweepSpec(**given)


def far(proposal) -> float:
    """Decades between a trial's rate and the best one."""
    return abs(math.log10(proposal.config.training["learning_rate"] / BEST))


def run(study: StudyFolder, spec: SweepSpec, count: int, level: float = 0.0) -> None:
    """Run a study whose trials are told without training; every fifth one fails."""
    study.write_record(StudyRecord(name=study.name, spec=spec.content()))
    decider = OptunaDecider(spec, study.name, open_storage(study))
    for number in range(count):
        proposal = decider.ask()
        folder = TrialFolder.create(study.trial(proposal.number).path, proposal.config)
        state = "failed" if number % 5 == 4 else "complete"
        result = Result(state=state, eval_loss=None if state == "failed" else level + far(proposal))
        folder.write_result(result)
        decider.tell(proposal.number, result)


@pytest.fixture
def old(tmp_path) -> StudyFolder:
    made = StudyFolder(tmp_path / "earlier")
    run(made, make_spec(), 40)
    return made


@pytest.mark.parametrize("name", ["tpe", "gp"])
def test_the_first_draws_are_near_the_best_prior_trials(tmp_path, old, name):
    options = {"multivariate": True, "group": True, "constant_liar": True} if name == "tpe" else {}
    spec = make_spec(name="new", sampler=SamplerSpec(name=name, seed=2, options=options))
    new = StudyFolder(tmp_path / "new")
    (prior,) = collect_prior_studies(spec, new, [old])
    assert str(prior) == "the sampler starts from 32 trials of earlier"
    write_prior_trials(new, [prior])
    earlier = read_prior_trials(new)
    assert earlier == list(prior.trials)
    draws = {}
    for known in ((), earlier):
        decider = OptunaDecider(spec, "new", in_memory(), known)
        draws[bool(known)] = []
        for _ in range(8):
            proposal = decider.ask()
            draws[bool(known)].append(far(proposal))
            decider.tell(proposal.number, Result(state="complete", eval_loss=far(proposal)))
        # Nothing of it is a trial of this study.
        assert decider.numbers() == set(range(8))
        assert len(decider.study.trials) == 8
    assert np.median(draws[True]) < 0.5 < np.median(draws[False])


def test_a_study_of_the_same_seed_does_not_draw_the_same_again(tmp_path, old):
    """Too few trials to learn from: the sampler still draws at random."""
    few = StudyFolder(tmp_path / "few")
    spec = make_spec(sampler=SamplerSpec(name="tpe", seed=0))
    run(few, spec, 4)
    (prior,) = collect_prior_studies(spec, StudyFolder(tmp_path / "new"), [few])
    decider = OptunaDecider(spec, "new", in_memory(), prior.trials)
    drawn = {decider.ask().config.training["learning_rate"] for _ in range(4)}
    assert not drawn & {trial.params["training.learning_rate"] for trial in prior.trials}


def test_a_new_study_learns_beyond_what_it_started_from(tmp_path, old):
    """Losses of another length lie on another level; the best place has moved, too."""
    spec = make_spec(steps=99, sampler=SamplerSpec(name="tpe", seed=3))
    (prior,) = collect_prior_studies(spec, StudyFolder(tmp_path / "new"), [old])
    assert not any(trial.alike for trial in prior.trials)
    decider = OptunaDecider(spec, "new", in_memory(), prior.trials)
    moved = []
    for _ in range(40):
        proposal = decider.ask()
        moved.append(abs(math.log10(proposal.config.training["learning_rate"] / (BEST / 30))))
        decider.tell(proposal.number, Result(state="complete", eval_loss=50 + moved[-1]))
    assert np.median(moved[-10:]) < 0.5 < np.median(moved[:5])


def rows(study: str, values: list[float], alike: bool) -> list[PriorTrial]:
    return [
        PriorTrial(study=study, number=index, params={}, values=(value,), alike=alike)
        for index, value in enumerate(values)
    ]


def test_values_of_another_setting_are_matched_by_quantile():
    same, other = rows("same", [1.0, 2.0], True), rows("other", [90.0, 70.0, 80.0, 60.0], False)
    assert match_quantiles([*same, *other], []) == [
        (1.0,),
        (2.0,),
        (90.0,),
        (70.0,),
        (80.0,),
        (60.0,),
    ]
    found = [value for (value,) in match_quantiles([*same, *other], [(3.0,), (4.0,), (5.0,)])]
    assert found[:2] == [1.0, 2.0]
    assert found[2:] == pytest.approx([4.75, 3.75, 4.25, 3.25])
    # With one trial of its own to go by, the order stays.
    draw = random.Random(0)
    values = [draw.random() for _ in range(20)]
    mapped = [value for (value,) in match_quantiles(rows("other", values, False), [(7.0,)])]
    assert np.argsort(mapped).tolist() == np.argsort(values).tolist()
    assert mapped == pytest.approx([7.0] * 20, abs=1e-6)


def test_values_on_another_eval_set_are_matched_by_quantile_in_a_study_of_the_same_base():
    prior = [t.model_copy(update={"measured_on": "a"}) for t in rows("same", [6.0, 8.0], True)]
    own = [(3.0,), (5.0,)]
    assert match_quantiles(prior, own, {"a", "b"}) == [(6.0,), (8.0,)]
    assert match_quantiles(prior, own) == [(6.0,), (8.0,)]
    found = [value for (value,) in match_quantiles(prior, own, {"b"})]
    assert found == pytest.approx([3.5, 4.5])


def test_groups_of_an_earlier_study_are_not_ranked_against_each_other():
    """The two trials on b have lower losses; they get the quartiles of the five on a."""
    values = [5.0, 6.0, 7.0, 8.0, 9.0, 0.1, 0.2]
    prior = [
        trial.model_copy(update={"measured_on": "b" if trial.number > 4 else "a"})
        for trial in rows("earlier", values, True)
    ]
    found = on_one_scale([*rows("other", [1.0], False), *prior])
    assert [trial.values[0] for trial in found] == pytest.approx([1, 5, 6, 7, 8, 9, 6, 8])
    assert [trial.measured_on for trial in found] == ["", *["a"] * 7]
    sampler = WarmStartSampler(optuna.samplers.RandomSampler(), prior, Space("new", {}, {}, {}))
    assert sampler.prior == found[1:]


def test_what_earlier_trials_were_measured_on_is_kept(tmp_path):
    study, spec = StudyFolder(tmp_path / "earlier"), make_spec()
    study.write_record(StudyRecord(name=study.name, spec=spec.content()))
    decider = OptunaDecider(spec, study.name, open_storage(study))
    for on in "aba":
        proposal = decider.ask()
        folder = TrialFolder.create(study.trial(proposal.number).path, proposal.config)
        data = DataSummary(train_rows=1, eval_rows=1, eval_hash=on, eval_text_hash="text")
        folder.write_result(Result(state="complete", eval_loss=1.0, data=data))
    for metric, expected in (("eval_loss", "aba"), ("seconds", ["", "", ""])):
        new = make_spec(objectives=(ObjectiveSpec(metric=metric),))
        (prior,) = collect_prior_studies(new, StudyFolder(tmp_path / "new"), [study])
        assert [trial.measured_on for trial in prior.trials] == list(expected)


def test_trials_that_do_not_fit_are_left_out_with_the_reason(tmp_path, old):
    space = {"training.learning_rate": (RATE,), "lora.r": (Choices(choices=(2, 4)),)}
    (prior,) = collect_prior_studies(make_spec(space=space), StudyFolder(tmp_path / "new"), [old])
    assert {trial.params["lora.r"] for trial in prior.trials} == {2, 4}
    assert "left out: lora.r: 8" in str(prior)
    narrow = {"training.learning_rate": (Range(type="float", low=1e-9, high=2e-9, log=True),)}
    with pytest.raises(ConfigError, match=r"warm_start.0: a study with complete trials .*0 trials"):
        collect_prior_studies(make_spec(space=narrow), StudyFolder(tmp_path / "new"), [old])
    with pytest.raises(ConfigError, match="another study") as caught:
        collect_prior_studies(make_spec(), old, [old, StudyFolder(tmp_path / "nothing")])
    assert [problem.key for problem in caught.value.problems] == ["warm_start.0", "warm_start.1"]


SWEEP = """
base: {training: {max_steps: 10}}
space: {lora.r: [2, 4], training.learning_rate: {low: 1e-4, high: 1e-2, log: true}}
stop: {trials: 5}
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("warm_start: first", ("first",)),
        ("warm_start: [first, second]", ("first", "second")),
        ("warm_start: null", ()),
        ("warm_start: [first, first]", "warm_start.1: the name of a study, each once"),
        ("warm_start: [../first]", "warm_start.0: the name of a study"),
        ("warm_start: [3]", "warm_start.0: the name of a study"),
        ("warm_start: {first: 1}", "warm_start: is a list of studies' names"),
        ("warm_start: first\nsampler: random", "learns from every trial: tpe, gp, got random"),
        ("warm_start: first\nsampler: grid", "learns from every trial: tpe, gp, got grid"),
    ],
)
def test_the_key(tmp_path, line, said):
    source = tmp_path / "sweep.yaml"
    source.write_text(SWEEP + line + "\n")
    if isinstance(said, tuple):
        assert load(source).warm_start == said
        return
    with pytest.raises(ConfigError) as caught:
        load(source)
    assert said in str(caught.value)
