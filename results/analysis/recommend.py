"""The trial to export: the best run of the configuration that the report recommends."""

from __future__ import annotations

from results.analysis.leaderboard import leaderboard
from results.data.measured import measured_alike
from results.data.naming import ranked_trials
from results.data.trials_table import trials_table
from trial.store.folders import StudyFolder


def recommended(study: StudyFolder) -> int | None:
    """Number of the recommended trial, among those whose weights still exist; None without any.

    This is not the trial with the lowest loss, which is often luck: where repeats over seeds tie,
    the report recommends the cheapest configuration.
    """
    table = measured_alike(trials_table(study))
    group = leaderboard(table).recommended
    if group is None:
        return None
    rows = ranked_trials(table)
    for number in rows.loc[rows["group"] == group.row["group"], "number"]:
        folder = study.trial(int(number))
        if folder.adapter.exists() or folder.model.exists():
            return int(number)
    return None
