"""The estimate of a sweep's cost against sums done by hand, and against a sweep that was run."""

from __future__ import annotations

import pytest

from sweep.planning import cost
from sweep.planning.cost import Profile
from sweep.planning.plan import cost_lines
from sweep.spec.dimension import Choices, Range
from sweep.spec.spec import ConfirmSpec, PrunerSpec, ResourceSpec, SamplerSpec, StopSpec, SweepSpec
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Evaluation, Result, Seconds, StudyRecord

PROFILE = Profile(startup=10.0, fixed=4.0, step=0.5, evaluation=2.0, source="a table")
RATE = Range(type="float", low=1e-5, high=1e-3, log=True)


def make(**changes) -> SweepSpec:
    given = {
        "name": "x",
        "base": {"training": {"max_steps": 40, "eval_steps": 10}},
        "space": {"training.learning_rate": (RATE,)},
        "stop": StopSpec(trials=10),
        **changes,
    }
    return SweepSpec(**given)


def test_a_whole_trial_is_fixed_plus_steps_plus_evaluations():
    assert PROFILE.trial_seconds(40, 4) == 4 + 40 * 0.5 + 4 * 2


def test_without_a_pruner_the_low_end_is_the_plain_sum():
    found = cost.estimate(make(), PROFILE, 40, workers=2)
    assert found.device_hours[0] == pytest.approx((10 * 32 + 2 * 10) / 3600)
    assert found.hours[0] == pytest.approx(found.device_hours[0] / 2)
    assert found.device_hours[1] == pytest.approx((10 * 32 * 1.25 + 2 * 10) / 3600)


def test_a_pruner_widens_the_range_and_repeats_are_counted_whole():
    pruned = cost.estimate(make(pruner=PrunerSpec(name="median")), PROFILE, 40, workers=1)
    assert pruned.device_hours[0] == pytest.approx((10 * 32 * 0.6 + 10) / 3600)
    confirmed = make(pruner=PrunerSpec(name="median"), confirm=ConfirmSpec(top=2, seeds=3))
    found = cost.estimate(confirmed, PROFILE, 40, workers=1)
    assert found.trials == (14, 14)
    assert found.device_hours[0] == pytest.approx((10 * 32 * 0.6 + 4 * 32 + 10) / 3600)


def test_devices_multiply_device_hours_and_not_hours():
    one = cost.estimate(make(), PROFILE, 40, workers=1)
    four = cost.estimate(make(resources=ResourceSpec(devices_per_trial=4)), PROFILE, 40, workers=1)
    assert four.device_hours[0] == pytest.approx(4 * one.device_hours[0])
    assert four.hours == one.hours


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"eval_steps": 10}, 4),
        ({"eval_steps": 0.25}, 4),
        ({"eval_steps": 15}, 2),
        ({"eval_steps": 10, "eval_on_start": True}, 5),
        ({"eval_strategy": "epoch", "num_train_epochs": 3.0}, 3),
    ],
)
def test_evaluations_of_a_trial(training, expected):
    spec = make(base={"training": {"max_steps": 40, **training}})
    assert cost.evaluations_of(spec, 40) == expected


def test_evaluations_that_are_named_are_counted():
    base = {"training": {"max_steps": 40}, "evaluation": {"steps": [5, 10, 20, 40, 80]}}
    assert cost.evaluations_of(make(base=base), 40) == 4


def test_a_grid_runs_no_more_than_it_has_points():
    space = {"lora.r": (Choices(choices=(2, 4, 8)),)}
    grid = make(space=space, sampler=SamplerSpec(name="grid"), stop=StopSpec())
    assert cost.known_trials(grid) == 3


BY_TIME = [
    # stop, pruner, workers, fewest and most trials (40 s and 32 s or 19.2 s each), hours
    ({"hours": 1.0}, "none", 1, (89, 112), 1.0),
    ({"hours": 1.0}, "median", 1, (89, 186), 1.0),
    ({"hours": 1.0}, "none", 4, (4 * 89, 4 * 112), 1.0),
    ({"device_hours": 2.0}, "none", 4, (4 * 22, 4 * 27), 0.25),
    ({"device_hours": 2.0, "hours": 0.1}, "none", 1, (8, 10), 0.1),
    ({"hours": 0.001}, "none", 1, (0, 0), 0.001),
]


@pytest.mark.parametrize(("stop", "pruner", "workers", "trials", "hours"), BY_TIME)
def test_a_sweep_bounded_by_time_alone_costs_its_time(stop, pruner, workers, trials, hours):
    resources = ResourceSpec(devices_per_trial=2)
    spec = make(stop=StopSpec(**stop), pruner=PrunerSpec(name=pruner), resources=resources)
    found = cost.estimate(spec, PROFILE, 40, workers=workers)
    assert (found.trials, found.workers) == (trials, workers)
    assert found.hours == pytest.approx((hours, hours))
    assert found.device_hours == pytest.approx((2 * hours * workers, 2 * hours * workers))
    text = "\n".join(cost_lines(spec, PROFILE, workers=workers, price=10.0))
    fewest, most = trials
    count = f"{fewest} to {most}" if most else "0"
    assert f"as many trials as fit into the time, about {count}, on {workers} workers" in text
    assert f"\n  {20 * hours * workers:.2f} at 10 per device-hour" in text
    assert "1000000" not in text


def test_without_a_bound_a_plan_says_what_a_trial_costs():
    spec = make(stop=StopSpec(no_improvement=5))
    assert cost.estimate(spec, PROFILE, 40, workers=1) is None
    text = "\n".join(cost_lines(spec, PROFILE, workers=1, price=10.0))
    assert "neither trials nor time are bounded: 0.00889 device-hours a whole trial" in text


def test_hours_that_end_a_sweep_before_its_trials_are_said():
    for hours, said in ((0.05, True), (5.0, False)):
        spec = make(stop=StopSpec(trials=10, hours=hours))
        text = "\n".join(cost_lines(spec, PROFILE, workers=1, price=None))
        assert ("stop.hours 0.05 ends it after about 5 whole trials" in text) is said
        assert "  10 trials on 1 workers of 1 device(s): 0.0917 to 0.114 device-hours, " in text


def test_epochs_become_steps_by_the_rows_there_are():
    spec = make(base={"training": {"num_train_epochs": 2.0, "per_device_train_batch_size": 100}})
    assert 40 <= cost.steps_of(spec) <= 60  # about 2500 rows of the built-in set


def test_the_budget_and_the_price_are_said():
    spec = make(stop=StopSpec(trials=10, device_hours=0.1))
    text = "\n".join(cost_lines(spec, PROFILE, workers=1, price=10.0))
    assert "buys about 11 whole trials" in text
    assert "at 10 per device-hour" in text


def test_an_earlier_study_of_the_same_model_and_data_gives_the_profile(tmp_path):
    study = StudyFolder(tmp_path / "earlier")
    study.write_record(StudyRecord(name="earlier", spec={}))
    folder = TrialFolder.create(study.trial(0).path, TrialConfig())
    for step in (5, 10):
        folder.append(Evaluation(step=step, eval_loss=1.0))
    seconds = Seconds(startup=6.0, load=1.0, first_step=2.0, train=9.0, eval=3.0, save=0.5)
    folder.write_result(Result(state="complete", eval_loss=1.0, steps=10, seconds=seconds))
    found = cost.earlier_profile(make(), tmp_path)
    assert (found.startup, found.fixed, found.step, found.evaluation) == (6.0, 3.5, 1.0, 1.5)
    other = make(base={"data": {"path": "other.jsonl"}, "training": {"max_steps": 40}})
    assert cost.earlier_profile(other, tmp_path) is None
