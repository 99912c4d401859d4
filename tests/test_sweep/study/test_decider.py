"""The decider: a real Optuna study whose trials are only told."""

from __future__ import annotations

import math

import optuna
from helpers.sweeps.decider import complete, learning_rate, make_spec
from helpers.sweeps.studies import findings

from sweep.spec.dimension import Choices, Derived, Range
from sweep.spec.spec import ObjectiveSpec, SamplerSpec, StopSpec
from sweep.storage.open import in_memory, open_storage
from sweep.study.decider import OptunaDecider
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, Evaluation, Result, StudyRecord


def test_draws_after_a_resume_are_not_the_draws_before_it(tmp_path):
    spec = make_spec(sampler=SamplerSpec(name="random", seed=7))
    folder = StudyFolder(tmp_path / "study")

    def draw(decider):
        rates = []
        for _ in range(3):
            proposal = decider.ask()
            rates.append(learning_rate(proposal))
            decider.tell(proposal.number, complete(1.0))
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
    before.tell(ended.number, complete(2.0))
    before.report(flying.number, Evaluation(step=5, eval_loss=3.0))
    with open(folder.journal, "ab") as journal:
        journal.write(b'{"op_code": 4, "trial')
    after = OptunaDecider(spec, "study", open_storage(folder))
    (back,) = after.pending()
    assert back == flying
    after.report(back.number, Evaluation(step=5, eval_loss=99.0))
    after.report(back.number, Evaluation(step=10, eval_loss=1.5))
    after.tell(back.number, complete(1.5))
    trial = after.study.trials[back.number]
    assert trial.intermediate_values == {5: 3.0, 10: 1.5}
    assert after.finished() == [0, 1]
    assert after.ask().number == 2


def test_each_result_is_told_as_what_it_is():
    decider = OptunaDecider(make_spec(), "study", in_memory())
    results = [
        complete(2.0),
        Result(state="pruned", eval_loss=3.0, steps=5),
        Result(state="failed", cause=Cause(kind="diverged", message="NaN", step=5), steps=5),
        Result(state="failed", cause=Cause(kind="error", message="boom")),
        complete(math.nan),
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


def test_several_objectives_make_a_pareto_front():
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
            proposal.number, Result(state="complete", eval_loss=loss, trainable_parameters=size)
        )
    assert [trial.values for trial in decider.study.best_trials] == [[1.0, 100.0], [2.0, 50.0]]


def test_enqueued_points_come_first():
    spec = make_spec(enqueue=({"lora.r": 8, "training.learning_rate": 1e-3}, {"lora.r": 2}))
    decider = OptunaDecider(spec, "study", in_memory())
    first, second = decider.ask(), decider.ask()
    assert (first.config.lora.r, learning_rate(first)) == (8, 1e-3)
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


DROPOUT = Range(type="float", low=0.0, high=0.4, step=0.1)


def stepped_spec(**changes):
    """Ranks are drawn at a dropout of 0.3 only."""
    ranks = Range(type="int", low=2, high=64, when={"lora.lora_dropout": (0.3,)})
    space = {"lora.lora_dropout": (DROPOUT,), "lora.r": (ranks,)}
    sampler = SamplerSpec(name="random", seed=1)
    return make_spec(space=space, sampler=sampler, stop=StopSpec(trials=40), **changes)


def test_a_condition_on_a_stepped_number_holds_and_its_branch_is_drawn():
    decider = OptunaDecider(stepped_spec(), "study", in_memory())
    proposals = [decider.ask() for _ in range(30)]
    dropouts = {proposal.params["lora.lora_dropout"] for proposal in proposals}
    assert dropouts == {0.0, 0.1, 0.2, 0.3, 0.4}
    for proposal in proposals:
        drawn = proposal.params["lora.lora_dropout"]
        assert proposal.config.lora.lora_dropout == drawn
        assert proposal.config.origin.params == proposal.params
        assert ("lora.r" in proposal.params) == (drawn == 0.3)


def test_a_journal_with_binary_sums_goes_on_and_agrees_with_its_folders(tmp_path):
    """Trials of an earlier version: the folder has the sum that Optuna drew."""
    study = StudyFolder(tmp_path / "study")
    spec = make_spec(name="study", space={"lora.lora_dropout": (DROPOUT,)})
    study.write_record(StudyRecord(name="study", spec=spec.content()))
    decider = OptunaDecider(spec, "study", open_storage(study))
    decider.study.enqueue_trial({"lora.lora_dropout": 0.1 + 0.2})
    proposal = decider.ask()
    assert decider.study.trials[0].params == {"lora.lora_dropout": 0.1 + 0.2}
    lora = proposal.config.lora.model_copy(update={"lora_dropout": 0.1 + 0.2})
    origin = proposal.config.origin.model_copy(update={"params": {"lora.lora_dropout": 0.1 + 0.2}})
    older = proposal.config.model_copy(update={"lora": lora, "origin": origin})
    folder = TrialFolder.create(study.trial(0).path, older)
    after = OptunaDecider(spec, "study", open_storage(study))
    (pending,) = after.pending()
    assert pending.params == {"lora.lora_dropout": 0.3}
    assert pending.duplicate_of is None
    folder.write_result(complete(1.0))
    after.tell(0, complete(1.0))
    assert findings(study) == []
    assert space_values(after) == [{"lora.lora_dropout": 0.3}]


def space_values(decider):
    """The values of a study's trials as `confirm: {per: ...}` groups them."""
    return [decider.space.values(trial.params) for trial in decider.study.trials]
