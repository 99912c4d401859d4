"""What the trial's callback decides at the end of an epoch, as a table."""

import pytest

from trial.training.callbacks import EpochEnd


@pytest.mark.parametrize(
    ("known", "evaluates", "saves"),
    [
        ({}, None, None),
        ({"mid_epoch": True}, None, None),
        ({"evaluated": True}, False, None),
        ({"chosen_steps": True}, False, None),
        ({"saved": True}, None, None),
        ({"last_step": True}, None, False),
        ({"last_step": True, "evaluated": True}, False, False),
        ({"stop": "prune"}, False, False),
        ({"stop": "prune", "mid_epoch": True, "saved": True}, False, False),
        ({"stop": "interrupt"}, None, True),
        ({"stop": "interrupt", "mid_epoch": True}, False, True),
        ({"stop": "interrupt", "saved": True}, None, False),
        ({"stop": "interrupt", "evaluated": True}, False, True),
        ({"stop": "interrupt", "last_step": True}, None, False),
    ],
)
def test_an_epochs_end_evaluates_and_saves(known, evaluates, saves):
    end = EpochEnd(**known)
    assert (end.evaluates, end.saves) == (evaluates, saves)
