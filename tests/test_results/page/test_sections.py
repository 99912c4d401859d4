"""Sections of a report: the data of the trials."""

from __future__ import annotations

from helpers.results import add_trial, make_config, make_study

from results.analysis.study_analysis import analyse
from results.data.folders import read_study
from results.page.sections import page_of
from trial.store.records import DataSummary


def data(name, **counts):
    return DataSummary(train_rows=1200, eval_rows=30, data_hash=name, **counts)


def sections(study):
    return {section.key: section for section in page_of(analyse(read_study(study))).sections}


def test_each_data_hash_has_a_row_of_counts(tmp_path):
    study = make_study(tmp_path / "s")
    long = data(
        "a" * 16, skipped=3, overlapping=4, duplicates=5, duplicates_across=6, train_tokens=64_000,
        eval_tokens=1500, prompt_format="llama2", train_on="all",
    )  # fmt: skip
    cut = data("b" * 16, truncated=20, answers_cut=7, unused_columns=("id", "url"))
    for number, summary in enumerate((long, cut, long)):
        config = make_config(number, "s", lora__r=2 + number)
        add_trial(study, config, 2.0, data=summary, data_hash=summary.data_hash)
    failed = make_config(3, "s", lora__r=9)
    add_trial(study, failed, None, "failed")
    (grid,) = sections(study)["data"].blocks
    titles = [head.text for head in grid.heads]
    first, second = [
        dict(zip(titles, (cell.text for cell in row), strict=True)) for row in grid.rows
    ]
    assert first == {
        "data hash": "a" * 16, "trials": "2", "training rows": "1,200", "held out": "30",
        "skipped": "3", "left out": "4", "repeated": "5", "in both sets": "6", "cut": "0",
        "answers cut": "0", "tokens that count": "64,000", "held-out tokens": "1,500",
        "format": "llama2", "train_on": "all", "columns not used": "none",
    }  # fmt: skip
    told = [second[name] for name in ("trials", "cut", "answers cut", "columns not used")]
    assert told == ["1", "20", "7", "id, url"]


def test_a_study_of_an_earlier_version_has_no_such_section(tmp_path):
    study = make_study(tmp_path / "s")
    add_trial(study, make_config(0, "s"), 2.0)
    assert "data" not in sections(study)
