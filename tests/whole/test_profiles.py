"""The Gaudi profiles: checked and planned on a machine with no card, no weights and no network."""

from __future__ import annotations

import pytest
from helpers.command import invoke
from helpers.paths import ROOT

PROFILES = sorted(ROOT.joinpath("spaces/gaudi").glob("*.yaml"))


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("COLUMNS", "160")


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_a_profile_is_checked_and_planned_without_a_device(profile, tmp_path):
    checked = invoke("check", profile)
    assert checked.exit_code == 0, checked.output
    assert "not on this machine" in checked.output
    assert "GiB" in checked.output
    planned = invoke("plan", profile, "--runs", tmp_path)
    assert planned.exit_code == 0, planned.output
    assert "learning_rate" in planned.output


def test_there_are_three_profiles():
    assert len(PROFILES) == 3


def test_what_cannot_fit_one_card_is_refused_with_the_arithmetic():
    large = next(path for path in PROFILES if "70b" in path.stem)
    refused = invoke("check", large, "--set", "resources.devices_per_trial=1")
    assert refused.exit_code == 2
    for part in ("GiB", "weights", "in all"):
        assert part in refused.output
    assert "Traceback" not in refused.output
