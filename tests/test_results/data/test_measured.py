"""Studies whose trials were measured on unlike things: ranked within a group, never across."""

from __future__ import annotations

import io

import pytest
from helpers.results import SPEC, add_trial, make_config, make_study
from rich.console import Console

from results import compare, print_table, recommended, trials_table, write
from results.analysis.leaderboard import leaderboard
from results.analysis.study_analysis import analyse
from results.data.folders import read_study
from results.data.measured import best_of_groups, measured_groups, not_compared
from results.page import summary
from trial.store.records import DataSummary

# Split seed and losses: the lowest loss of all is that of the smallest set.
PLANTED = ((0, (2.3, 2.2)), (1, (2.6, 2.4, 2.5)), (2, (1.1,)))


def goals(*names):
    return [{"metric": name, "direction": "minimize"} for name in names]


def data(tokens: str, text: str = "t", **counts: int) -> DataSummary:
    given = {"train_rows": 9, "eval_rows": 3, "eval_tokens": 10, "eval_bytes": 40, **counts}
    return DataSummary(eval_hash=tokens, eval_text_hash=text, data_hash=f"all {tokens}", **given)


def planted(path, metric="eval_loss", summary_of=lambda seed: data(f"set {seed}", f"text {seed}")):
    study = make_study(path, {**SPEC, "objectives": goals(metric)})
    trials = [(seed, loss) for seed, losses in PLANTED for loss in losses]
    for number, (seed, loss) in enumerate(trials):
        config = make_config(number, lora__r=4 * (number + 1), data__split_seed=seed)
        folder = add_trial(study, config, loss, data=summary_of(seed), data_hash=f"all set {seed}")
        folder.adapter.mkdir()
    return study


def test_the_answer_is_of_the_largest_group_and_each_group_has_its_best(tmp_path):
    study = planted(tmp_path / "s")
    table = trials_table(study)
    assert measured_groups(table) == ["set 1", "set 0", "set 2"]
    board = leaderboard(table)
    assert [standing.group.trials for standing in board.standings] == [(3,), (4,), (2,)]
    best = [(g.label, g.trials, g.row["number"], g.names) for g in best_of_groups(table)]
    seed = ("data.split_seed",)
    assert best == [("A", 3, 3, seed), ("B", 2, 1, seed), ("C", 1, 5, seed)]
    said = summary.sentences(analyse(read_study(study)))
    assert said[0].startswith(
        "The complete trials were measured on 3 unlike evaluation sets (split seed differs)"
    )
    assert "split seed 2 1.1000 (trial 5 of 1)" in said[1]
    assert said[2].startswith("Rank 16 has the lowest eval loss, 2.4000")
    assert not any("1.1000" in line for line in said[2:])
    page = write(study).read_text()
    assert page.index("3 unlike evaluation sets") < page.index("Rank 16 has the lowest")
    assert recommended(study) == 3


def test_the_console_table_ranks_within_the_largest_group(tmp_path):
    said = io.StringIO()
    print_table(trials_table(planted(tmp_path / "s")), Console(file=said, width=100))
    first, rest = said.getvalue().split("Best of each group")
    assert "is not compared" in first
    assert first.index("2.4000") < first.index("2.5000") < first.index("2.6000")
    assert "1.1000" not in first
    assert rest.index("2.4000") < rest.index("2.2000") < rest.index("1.1000")


@pytest.mark.parametrize(
    ("metric", "summary_of"),
    [
        ("eval_loss", lambda seed: data("one set", f"text {seed}")),
        ("eval_loss_per_byte", lambda seed: data(f"set {seed}", "one text")),
        ("seconds", lambda seed: data(f"set {seed}", f"text {seed}")),
    ],
)
def test_what_was_measured_alike_is_ranked_whatever_else_differs(tmp_path, metric, summary_of):
    study = planted(tmp_path / "s", metric, summary_of)
    table = trials_table(study)
    assert len(measured_groups(table)) == 1
    assert not_compared(table) == ""
    assert len(leaderboard(table).standings) == 6
    if metric != "seconds":
        assert recommended(study) == 5


def test_losses_per_byte_of_unlike_texts_are_not_ranked(tmp_path):
    study = planted(tmp_path / "s", "eval_loss_per_byte")
    assert "3 unlike texts" in not_compared(trials_table(study))
    # Ten tokens and forty bytes.
    assert leaderboard(trials_table(study)).leader.mean == pytest.approx(2.4 * 10 / 40)


def test_results_of_earlier_versions_go_by_the_hash_of_all_data(tmp_path):
    study = planted(tmp_path / "s", summary_of=lambda seed: None)
    assert measured_groups(trials_table(study)) == ["all set 1", "all set 0", "all set 2"]
    # Trials that this version added to such a study belong with the others.
    config = make_config(6, lora__r=99, data__split_seed=0)
    add_trial(study, config, 2.1, data=data("set 0"), data_hash="all set 0")
    table = trials_table(study)
    assert table["measured_on"].value_counts().to_dict() == {
        "all set 1": 3, "set 0": 3, "all set 2": 1,
    }  # fmt: skip


def test_trials_of_unlike_groups_side_by_side_are_not_ranked(tmp_path):
    study = planted(tmp_path / "s")
    unlike = compare([study], [1, 5]).with_suffix(".md").read_text(encoding="utf-8")
    assert "measured on unlike evaluation sets, so their values are not compared" in unlike
    assert "behind" not in unlike
    alike = compare([study], [0, 1]).with_suffix(".md").read_text(encoding="utf-8")
    assert "Trial 1 has the lowest eval loss, 2.2000" in alike
