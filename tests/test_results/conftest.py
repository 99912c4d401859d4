"""A study of ranks and its report, for the tests of pages."""

from __future__ import annotations

import pytest
from helpers.results import rank_study

from results import write_report


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = rank_study(tmp_path_factory.mktemp("runs") / "ranks")
    write_report(study)
    return study


@pytest.fixture(scope="module")
def html(study):
    return (study.report / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def markdown(study):
    return (study.report / "report.md").read_text(encoding="utf-8")
