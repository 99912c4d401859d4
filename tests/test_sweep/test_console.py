"""Progress of a running sweep: the value of the objective, and the time that is left."""

import io

from rich.console import Console

from sweep import console
from sweep.driver.progress import SweepProgress
from sweep.planning import cost
from sweep.spec.spec import SweepSpec
from trial.store.records import DataSummary, Evaluation, Result, Seconds


def table_text(progress: SweepProgress, metric: str) -> str:
    out = io.StringIO()
    Console(file=out, width=120, color_system=None).print(console.running_table(progress, metric))
    return out.getvalue()


def test_a_line_shows_the_value_that_is_optimised():
    result = Result(
        state="complete", eval_loss=3.5, steps=11, peak_memory_bytes=720_000_000,
        seconds=Seconds(train=5.0),
    )  # fmt: skip
    for metric, shown in (("eval_loss", "3.5000"), ("seconds_per_step", "0.5000"),
                         ("peak_memory_bytes", "7.2e+08")):  # fmt: skip
        progress = SweepProgress(metric)
        progress.add_trial(0, {"zero_stage": 2})
        progress.add_result(0, result)
        line = console.trial_line(0, result, {"zero_stage": 2}, progress).plain
        assert f"complete  {shown}  zero_stage=2" in line
        assert f"best {shown} (trial 0" in console.summary(progress)


def test_the_best_trial_is_one_of_the_largest_group_and_the_line_says_so():
    progress = SweepProgress()
    for number, (on, loss) in enumerate([("a", 3.0), ("a", 2.0), ("b", 0.5)]):
        data = DataSummary(train_rows=1, eval_rows=1, eval_hash=on)
        result = Result(state="complete", eval_loss=loss, data=data)
        progress.add_trial(number, {})
        progress.add_result(number, result)
        line = console.trial_line(number, result, {}, progress).plain
        assert line.endswith("best so far") is (number < 2)
    summary = console.summary(progress)
    assert "best 2.0000 (trial 1:" in summary
    assert (
        ") among 2 of 3 complete trials: the largest of 2 groups that were measured on" in summary
    )


def test_the_table_names_the_metric_it_shows():
    row = Evaluation(step=4, eval_loss=2.25, metrics={"own": 0.75}, epoch=0.1, tokens=1,
                     train_seconds=1.0, time=0.0)  # fmt: skip
    for metric, title, value in (("seconds", "eval_loss", "2.2500"), ("own", "own", "0.7500")):
        progress = SweepProgress(metric)
        progress.set_running(0)
        progress.running[0].last = row
        text = table_text(progress, metric)
        assert title in text
        assert value in text


def test_what_is_left_of_a_grid_is_estimated_without_a_stop_condition():
    content = {
        "name": "g",
        "space": {"lora.r": [{"choices": [2, 4, 8]}]},
        "sampler": {"name": "grid"},
    }
    spec = SweepSpec.model_validate(content)
    now = [0.0]
    progress = SweepProgress(at_most=cost.known_trials(spec), clock=lambda: now[0])
    progress.set_running(0)
    now[0] = 10.0
    progress.add_result(0, Result(state="complete", eval_loss=1.0))
    assert progress.remaining_seconds == 20.0
    assert console.summary(progress).startswith("1 of 3 trials ended")
