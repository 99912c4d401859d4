"""Commands about a study on disk: what they refuse."""

from __future__ import annotations

import pytest
from helpers.command import invoke
from helpers.results import rank_study

from trial.store.folders import StudyFolder


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> StudyFolder:
    return rank_study(tmp_path_factory.mktemp("runs") / "tiny")


def test_exporting_an_unknown_trial_is_refused(study, tmp_path):
    words = ["export", "tiny", "--runs", study.path.parent, "--to", tmp_path / "x"]
    done = invoke(*words, "--trial", "77")
    assert done.exit_code == 2
    assert "there are 0 to 18, or say `best`" in " ".join(done.stderr.split())


def test_compare_refuses_what_it_cannot_find(study):
    for trials, said in (("1 99", "no trial"), ("other:1 3", "a trial to compare is")):
        done = invoke("compare", "tiny", "--runs", study.path.parent, "--trials", trials)
        assert done.exit_code == 2
        assert said in done.stderr
