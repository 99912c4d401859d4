"""What the device time of a study bought, and its price."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers.results import rank_study

from results.analysis import cost
from results.data.trials_table import trials_table


def test_device_time_adds_up_whatever_it_bought(tmp_path):
    table = trials_table(rank_study(tmp_path / "s"))
    spent = cost.seconds_by_use(table)
    assert spent.sum(axis=1).sum() == pytest.approx(table["device_seconds"].sum())
    assert (spent >= 0).all().all()
    failed = table["state"] == "failed"
    assert spent.loc[failed, "failed"].sum() == pytest.approx(
        table.loc[failed, "device_seconds"].sum()
    )
    assert spent.loc[failed, "train"].sum() == 0


def test_retried_work_is_taken_out_of_training():
    table = pd.DataFrame([{
        "state": "complete", "devices": 2, "device_seconds": 30.0, "repeated_seconds": 4.0,
        "seconds_train": 10.0, "seconds_eval": 3.0, "seconds_save": 1.0, "seconds_startup": 1.0,
    }]).assign(seconds_load=0.0, seconds_first_step=0.0)  # fmt: skip
    spent = cost.total_by_use(table)
    assert spent["retried"] == 8.0
    assert spent["train"] == 12.0
    assert sum(spent.values()) == 30.0


@pytest.mark.parametrize(
    ("spec", "given_price", "expected"),
    [
        ({}, None, None),
        ({"resources": {"price_per_device_hour": 2.5}}, None, 2.5),
        ({"resources": {"price_per_device_hour": 3}}, 7.0, 7.0),
        ({"resources": {"price_per_device_hour": "3"}}, None, None),
        ({"resources": None}, None, None),
    ],
)
def test_where_the_price_comes_from(spec, given_price, expected):
    price = cost.price_of(spec, given_price, "EUR")
    assert (price.per_device_hour if price else None) == expected
