"""The decider: a real Optuna study on a real journal, trials that are only told."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable

import optuna
import pytest

from sweep.spec.dimension import Choices, Derived, Range
from sweep.spec.rungs import evaluated_at_rungs, rungs
from sweep.spec.spec import ConfirmSpec, ObjectiveSpec, PrunerSpec, SamplerSpec, StopSpec, SweepSpec
from sweep.storage.open import in_memory, open_storage
from sweep.study.decider import OptunaDecider
from sweep.study.samplers import make_pruner
from trial.store.folders import StudyFolder
from trial.store.records import Cause, Evaluation, Result

RATE = Range(type="float", low=1e-5, high=1e-1, log=True)


def make_spec(**changes) -> SweepSpec:
    given = {
        "name": "study",
        "space": {"training.learning_rate": (RATE,), "lora.r": (Choices(choices=(2, 4, 8)),)},
        "stop": StopSpec(trials=10),
        **changes,
    }
    return SweepSpec(**given)


def rate(proposal) -> float:
    return proposal.config.training["learning_rate"]


def done(value: float) -> Result:
    return Result(state="complete", value=value, steps=10)


@pytest.mark.parametrize("name", ["tpe", "gp", "random", "qmc", "cmaes"])
def test_a_sampler_finds_the_valley(name):
    space = {
        "training.learning_rate": (RATE,),
        "lora.lora_dropout": (Range(type="float", low=0.0, high=0.5),),
    }
    spec = make_spec(space=space, sampler=SamplerSpec(name=name, seed=1))
    decider = OptunaDecider(spec, "study", in_memory())
    losses = []
    for _ in range(25):
        proposal = decider.ask()
        losses.append(abs(math.log10(rate(proposal)) + 3))
        decider.tell(proposal.number, done(losses[-1]))
    assert min(losses) < 0.25
    assert decider.study.best_value == min(losses)


@pytest.mark.parametrize(
    ("training", "given", "rungs"),
    [
        ({"max_steps": 60, "eval_steps": 15}, {}, (15, 60)),
        ({"max_steps": 60, "eval_steps": 0.1}, {}, (6, 60)),
        ({"max_steps": 60, "eval_steps": 15}, {"min_resource": 30, "max_resource": 90}, (30, 90)),
        ({"num_train_epochs": 2, "eval_steps": 5}, {}, (5, "auto")),
        ({"max_steps": 10, "eval_steps": 20}, {}, (20, "auto")),
    ],
)
def test_rungs_lie_where_trials_are_evaluated(training, given, rungs):
    pruner = PrunerSpec(name="hyperband", options={"reduction_factor": 3, **given})
    made = make_pruner(make_spec(base={"training": training}, pruner=pruner))
    assert (made._min_resource, made._max_resource) == rungs


@pytest.mark.parametrize(
    ("training", "given", "first"),
    [
        ({"max_steps": 60, "eval_steps": 15}, {}, 15),
        ({"max_steps": 64, "eval_steps": 4}, {}, 8),
        ({"max_steps": 100, "eval_steps": 5}, {}, 15),
        ({"max_steps": 1000, "eval_steps": 0.01}, {}, 130),
        ({"max_steps": 64, "eval_steps": 4}, {"min_resource": 4}, 4),
        ({"num_train_epochs": 2, "eval_steps": 5}, {}, 5),
        ({"max_steps": 10, "eval_steps": 20}, {}, 20),
    ],
)
def test_halving_begins_at_the_first_evaluation_after_an_eighth(training, given, first):
    halving = PrunerSpec(name="successive_halving", options=given)
    made = make_pruner(make_spec(base={"training": training}, pruner=halving))
    assert made.first == first


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("successive_halving", {"reduction_factor": 2}, [8, 16, 32]),
        ("successive_halving", {}, [8, 32]),
        ("successive_halving", {"reduction_factor": 3, "min_resource": 4}, [4, 12, 36]),
        ("successive_halving", {"reduction_factor": 2, "min_early_stopping_rate": 2}, [32]),
        ("hyperband", {}, [4, 12, 36]),
        ("successive_halving", {"min_resource": "auto"}, None),
        ("median", {}, None),
    ],
)
def test_a_trial_shown_at_its_rungs_alone_is_pruned_as_one_shown_always(name, given, expected):
    training = {"max_steps": 64, "eval_steps": 4}
    pruner = PrunerSpec(name=name, options=given, evaluate="rungs")
    spec = make_spec(base={"training": training}, pruner=pruner, sampler=SamplerSpec(seed=1))
    assert rungs(spec) == expected
    thin = evaluated_at_rungs(spec)
    assert (thin.base.get("evaluation") or {}).get("steps") == expected
    if expected is None:
        return
    assert rungs(thin) == expected
    ends = []
    for shown, one in ((range(4, 65, 4), spec), ((*expected, 64), thin)):
        decider = OptunaDecider(one, "study", in_memory())
        ends.append(pruned_at(decider, shown))
    assert ends[0] == ends[1]
    assert set(ends[0]) > {64}


def pruned_at(decider: OptunaDecider, steps: Iterable[int]) -> list[int]:
    """The last step of thirty trials whose curves cross."""
    found = []
    for number in range(30):
        proposal, last = decider.ask(), 0
        for step in steps:
            last = step
            loss = math.sin(7.0 * number) + math.cos(number) * step / 64
            if decider.report(proposal.number, Evaluation(step=step, eval_loss=loss)):
                break
        found.append(last)
    return found


def test_hyperband_prunes_before_any_trial_is_complete():
    """It is told how long trials are, and need not wait for one to show."""
    base = {"training": {"max_steps": 27, "eval_steps": 1}}
    pruner = PrunerSpec(name="hyperband", options={"reduction_factor": 3})
    decider = OptunaDecider(make_spec(base=base, pruner=pruner), "study", in_memory())
    pruned = 0
    for number in range(12):
        proposal = decider.ask()
        steps = (Evaluation(step=step, eval_loss=float(number)) for step in range(1, 27))
        pruned += any(decider.report(proposal.number, evaluation) for evaluation in steps)
    assert pruned > 0


def test_a_grid_is_walked_once_in_file_order_and_goes_on_where_it_was():
    space = {"lora.r": (Choices(choices=(2, 4)),), "zero_stage": (Choices(choices=(0, 1, 2)),)}
    spec = make_spec(space=space, sampler=SamplerSpec(name="grid"))
    storage = in_memory()
    first = OptunaDecider(spec, "study", storage)
    seen = []
    for _ in range(4):
        proposal = first.ask()
        seen.append((proposal.config.lora.r, proposal.config.zero_stage))
        first.tell(proposal.number, done(1.0))
    second = OptunaDecider(spec, "study", storage)
    while (proposal := second.ask()) is not None:
        seen.append((proposal.config.lora.r, proposal.config.zero_stage))
        second.tell(proposal.number, done(1.0))
    assert seen == [(2, 0), (2, 1), (2, 2), (4, 0), (4, 1), (4, 2)]


def test_a_small_space_is_exhausted_without_training_anything_twice():
    space = {
        "lora.r": (Choices(choices=(2, 4, 8)),),
        "lora.use_rslora": (Choices(choices=(False, True)),),
    }
    decider = OptunaDecider(make_spec(space=space), "study", in_memory())
    trained, repeats = [], 0
    while (proposal := decider.ask()) is not None:
        if proposal.duplicate_of is None:
            trained.append((proposal.config.lora.r, proposal.config.lora.use_rslora))
            decider.tell(proposal.number, done(float(proposal.config.lora.r)))
        else:
            repeats += 1
            result = Result(state="duplicate", duplicate_of=proposal.duplicate_of)
            decider.tell(proposal.number, result)
    assert len(trained) == len(set(trained)) == 6
    states = [trial.state.name for trial in decider.study.trials]
    assert states.count("COMPLETE") == 6
    assert states.count("FAIL") == repeats


def test_two_names_for_one_configuration_are_a_duplicate():
    space = {
        "lora.r": (Choices(choices=(4,)),),
        "lora.lora_alpha": (Choices(choices=(8, 8.0 + 8)),),
    }
    variables = {"spare": (Range(type="float", low=0.0, high=1.0),)}
    spec = make_spec(space=space, variables=variables)
    decider = OptunaDecider(spec, "study", in_memory())
    proposals = [decider.ask() for _ in range(4)]
    originals = [p for p in proposals if p.duplicate_of is None]
    assert len(originals) == 2
    assert {p.duplicate_of for p in proposals if p.duplicate_of is not None} <= {
        p.number for p in originals
    }


def test_draws_after_a_resume_are_not_the_draws_before_it(tmp_path):
    spec = make_spec(sampler=SamplerSpec(name="random", seed=7))
    folder = StudyFolder(tmp_path / "study")

    def draw(decider):
        rates = []
        for _ in range(3):
            proposal = decider.ask()
            rates.append(rate(proposal))
            decider.tell(proposal.number, done(1.0))
        return rates

    first = draw(OptunaDecider(spec, "study", open_storage(folder)))
    second = draw(OptunaDecider(spec, "study", open_storage(folder)))
    fresh = draw(OptunaDecider(spec, "study", in_memory()))
    assert first == fresh
    assert not set(first) & set(second)


def test_a_trial_in_flight_comes_back_under_its_number_with_its_values(tmp_path):
    spec = make_spec()
    folder = StudyFolder(tmp_path / "study")
    before = OptunaDecider(spec, "study", open_storage(folder))
    ended, flying = before.ask(), before.ask()
    before.tell(ended.number, done(2.0))
    before.report(flying.number, Evaluation(step=5, eval_loss=3.0))
    with open(folder.journal, "ab") as journal:
        journal.write(b'{"op_code": 4, "trial')
    after = OptunaDecider(spec, "study", open_storage(folder))
    (back,) = after.pending()
    assert back == flying
    after.report(back.number, Evaluation(step=5, eval_loss=99.0))
    after.report(back.number, Evaluation(step=10, eval_loss=1.5))
    after.tell(back.number, done(1.5))
    trial = after.study.trials[back.number]
    assert trial.intermediate_values == {5: 3.0, 10: 1.5}
    assert after.finished() == [0, 1]
    assert after.ask().number == 2


def test_the_sampler_hears_the_truth():
    decider = OptunaDecider(make_spec(), "study", in_memory())
    results = [
        done(2.0),
        Result(state="pruned", value=3.0, steps=5),
        Result(state="failed", cause=Cause(kind="diverged", message="NaN", step=5), steps=5),
        Result(state="failed", cause=Cause(kind="error", message="boom")),
        done(math.nan),
    ]
    for result in results:
        proposal = decider.ask()
        decider.report(proposal.number, Evaluation(step=5, eval_loss=3.5))
        decider.tell(proposal.number, result)
    trials = decider.study.trials
    assert [trial.state.name for trial in trials] == [
        "COMPLETE", "PRUNED", "PRUNED", "FAIL", "FAIL",
    ]  # fmt: skip
    assert [trial.value for trial in trials] == [2.0, 3.5, 3.5, None, None]
    assert trials[2].user_attrs["cause"] == "diverged: NaN"


def test_a_diverged_trial_without_an_evaluation_still_teaches_tpe():
    decider = OptunaDecider(make_spec(), "study", in_memory())
    proposal = decider.ask()
    cause = Cause(kind="diverged", message="NaN", step=1)
    decider.tell(proposal.number, Result(state="failed", cause=cause))
    assert decider.study.trials[0].state == optuna.trial.TrialState.PRUNED
    assert decider.ask().number == 1


LOSS_AND_SIZE = (ObjectiveSpec(), ObjectiveSpec(metric="trainable_parameters"))


@pytest.mark.parametrize(
    ("name", "objectives", "most"),
    [
        ("tpe", 1, 20),
        ("tpe", 2, 20),
        ("gp", 1, 6),
        ("nsga2", 1, 16),
        ("nsga2", 2, 16),
        ("cmaes", 1, 12),
    ],
)
def test_samplers_keep_away_from_what_has_no_memory(name, objectives, most):
    """The loss falls with the rank, and above rank 32 (a third of the space) there is no memory."""
    ranks = Range(type="int", low=2, high=128, log=True)
    count = 24 if name == "gp" else 60
    options = {"population_size": 10} if name == "nsga2" else {}
    spec = make_spec(
        space={"lora.r": (ranks,), "training.learning_rate": (RATE,)},
        sampler=SamplerSpec(name=name, seed=3, options=options),
        objectives=LOSS_AND_SIZE[:objectives],
    )
    decider, without = OptunaDecider(spec, "study", in_memory()), []
    for _ in range(count):
        proposal = decider.ask()
        if proposal.duplicate_of is not None:
            decider.tell(proposal.number, Result(state="duplicate", duplicate_of=0))
            continue
        rank = proposal.config.lora.r
        loss = 5 - math.log2(rank) / 4 + (math.log10(rate(proposal)) + 3) ** 2
        good = Result(state="complete", value=loss, trainable_parameters=rank)
        cause = Cause(kind="out_of_memory", message="none left")
        decider.tell(proposal.number, good if rank <= 32 else Result(state="failed", cause=cause))
        without.append(rank > 32)
    assert any(without)
    assert sum(without[len(without) // 2 :]) <= most
    assert all(best.params["lora.r"] <= 32 for best in decider.study.best_trials)


def test_a_trial_without_memory_is_infeasible_and_never_repeated():
    spec = make_spec(confirm=ConfirmSpec(top=3, seeds=2))
    decider = OptunaDecider(spec, "study", in_memory())
    cause = Cause(kind="out_of_memory", message="none left")
    failed = Result(state="failed", cause=cause)
    for result in (failed, done(1.0), done(2.0), failed):
        decider.tell(decider.ask().number, result)
    trials = decider.study.trials
    assert [t.state.name for t in trials] == ["PRUNED", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert [t.constraints["out_of_memory"] > 0 for t in trials] == [True, False, False, True]
    assert trials[3].value == 2.0
    assert {p.config.origin.confirms for p in decider.confirmations()} == {1, 2}


def test_a_kill_between_the_constraint_and_the_end_tells_it_once(tmp_path):
    folder = StudyFolder(tmp_path / "study")
    before = OptunaDecider(make_spec(), "study", open_storage(folder))
    before.tell(before.ask().number, done(1.0))
    cut_short = before.ask().number
    before._open[cut_short].set_constraint("out_of_memory", 1.0)
    after = OptunaDecider(make_spec(), "study", open_storage(folder))
    (back,) = after.pending()
    cause = Cause(kind="out_of_memory", message="none left")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after.tell(back.number, Result(state="failed", cause=cause))
    assert after.study.trials[cut_short].constraints == {"out_of_memory": 1.0}
    assert after.study.trials[cut_short].value == 1.0


def test_a_study_of_before_that_knows_no_constraint_goes_on_with_gp():
    spec = make_spec(sampler=SamplerSpec(name="gp", seed=1, options={"n_startup_trials": 2}))
    decider = OptunaDecider(spec, "study", in_memory())
    for value in (1.0, 2.0):
        decider.study.tell(decider.ask().number, value)
    cause = Cause(kind="out_of_memory", message="none left")
    decider.tell(decider.ask().number, Result(state="failed", cause=cause))
    assert decider.study.trials[2].state.name == "PRUNED"
    assert decider.ask().number == 3


MEDIAN = {"name": "median", "options": {"n_startup_trials": 2}}
PRUNERS = [
    # pruner, its keywords, at which step the worst of five curves is stopped
    ("none", {}, None),
    ("median", {"n_startup_trials": 2}, 1),
    ("median", {"n_startup_trials": 2, "n_warmup_steps": 2}, 2),
    ("percentile", {"percentile": 50.0, "n_startup_trials": 2}, 1),
    ("successive_halving", {"reduction_factor": 2}, 1),
    ("successive_halving", {"reduction_factor": 2, "min_resource": 2}, 2),
    ("threshold", {"upper": 5.0}, 1),
    ("patient", {"patience": 1, "wrapped": MEDIAN}, None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "expected"), PRUNERS)
def test_pruners_stop_the_worst_curve_where_they_say(name, options, expected):
    base = {"training": {"eval_steps": 1, "max_steps": 8}}
    spec = make_spec(base=base, pruner=PrunerSpec(name=name, options=options))
    decider = OptunaDecider(spec, "study", in_memory())
    stopped = {}
    for level in (1.0, 2.0, 1.5, 1.2, 9.0):
        proposal = decider.ask()
        for step in range(1, 5):
            # Every curve falls: patience has nothing to lose.
            if decider.report(proposal.number, Evaluation(step=step, eval_loss=level - step / 100)):
                stopped[level] = step
                break
        state = "pruned" if level in stopped else "complete"
        decider.tell(proposal.number, Result(state=state, value=level, steps=4))
    assert stopped.get(9.0) == expected


def test_nothing_is_pruned_on_the_evaluation_before_the_first_step():
    spec = make_spec(pruner=PrunerSpec(name="threshold", options={"upper": 1.0}))
    decider = OptunaDecider(spec, "study", in_memory())
    proposal = decider.ask()
    assert not decider.report(proposal.number, Evaluation(step=0, eval_loss=9.0))
    assert decider.report(proposal.number, Evaluation(step=1, eval_loss=9.0))


def test_several_objectives_make_a_front():
    objectives = (
        ObjectiveSpec(),
        ObjectiveSpec(metric="trainable_parameters"),
    )
    spec = make_spec(objectives=objectives, sampler=SamplerSpec(name="nsga2", seed=1))
    decider = OptunaDecider(spec, "study", in_memory())
    for loss, size in [(1.0, 100), (2.0, 50), (3.0, 200)]:
        proposal = decider.ask()
        assert not decider.report(proposal.number, Evaluation(step=1, eval_loss=loss))
        decider.tell(
            proposal.number, Result(state="complete", value=loss, trainable_parameters=size)
        )
    assert [trial.values for trial in decider.study.best_trials] == [[1.0, 100.0], [2.0, 50.0]]


def test_known_good_points_come_first():
    spec = make_spec(enqueue=({"lora.r": 8, "training.learning_rate": 1e-3}, {"lora.r": 2}))
    decider = OptunaDecider(spec, "study", in_memory())
    first, second = decider.ask(), decider.ask()
    assert (first.config.lora.r, rate(first)) == (8, 1e-3)
    assert second.config.lora.r == 2


def test_an_impossible_draw_is_a_problem_and_no_exception():
    space = {
        "lora.r": (Choices(choices=(2, 4)),),
        "lora.lora_alpha": (Derived(expression="lora.r - 2"),),
    }
    decider = OptunaDecider(make_spec(space=space), "study", in_memory())
    problems: dict[int, str] = {}
    while (proposal := decider.ask()) is not None:
        problems.setdefault(proposal.params["lora.r"], proposal.problem)
    assert "lora.lora_alpha" in problems[2]
    assert problems[4] == ""


def test_a_preview_shows_only_what_would_be_trained():
    space = {"lora.r": (Choices(choices=(2, 4, 8)),)}
    shown = OptunaDecider(make_spec(space=space), "study", in_memory()).preview(10)
    assert sorted(config.lora.r for config in shown) == [2, 4, 8]


def test_the_best_are_repeated_over_the_same_seeds_and_never_pruned(tmp_path):
    space = {"lora.r": (Choices(choices=(2, 4, 8)),)}
    pruner = PrunerSpec(name="threshold", options={"upper": 0.5})
    spec = make_spec(
        space=space,
        base={"training": {"seed": 7}},
        sampler=SamplerSpec(name="grid"),
        pruner=pruner,
        confirm=ConfirmSpec(top=2, seeds=3),
    )
    folder = StudyFolder(tmp_path / "study")
    decider = OptunaDecider(spec, "study", open_storage(folder))
    for loss in (3.0, 1.0, 2.0):
        decider.tell(decider.ask().number, done(loss))
    repeats = list(decider.confirmations())
    seen = [(p.config.lora.r, p.config.training["seed"], p.config.origin.confirms) for p in repeats]
    assert seen == [(4, 8, 1), (4, 9, 1), (8, 8, 2), (8, 9, 2)]
    assert not decider.report(repeats[0].number, Evaluation(step=1, eval_loss=9.0))
    decider.tell(repeats[0].number, done(0.1))
    again = OptunaDecider(spec, "study", open_storage(folder))
    assert [p.config.training["seed"] for p in again.pending()] == [9, 8, 9]
    assert list(again.confirmations()) == []
