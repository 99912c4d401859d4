"""The best trial by its objective, where trials were measured on unlike things."""

from helpers.results import add_trial, make_config, make_study
from helpers.sweeps.spaces import make_spec

from sweep.study.select_trial import select_trial
from trial.store.records import DataSummary


def test_the_best_is_that_of_the_largest_group(tmp_path):
    spec = make_spec({"lora.r": [4, 8]}).model_dump(mode="json")
    study = make_study(tmp_path / "s", spec)
    for number, (on, loss) in enumerate([("a", 1.0), ("b", 2.5), ("b", 2.4)]):
        data = DataSummary(train_rows=1, eval_rows=1, eval_hash=on)
        add_trial(study, make_config(number, lora__r=4), loss, data=data)
    assert select_trial(study, "best").path.name == "00002"
    assert select_trial(study, "0").path.name == "00000"
