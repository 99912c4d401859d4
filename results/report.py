"""Write what a study has shown: tables and a report, from its folders alone."""

from __future__ import annotations

from pathlib import Path

from results.report_md import render
from results.table import trials_table, write_table
from trial.folder import StudyFolder, write_atomically


def write(study: StudyFolder) -> Path:
    """Write `report.md`, `trials.csv` and `trials.parquet` under the study's `report` folder.

    Returns:
        The path of `report.md`.
    """
    table = trials_table(study)
    write_table(table, study.report)
    page = study.report / "report.md"
    write_atomically(page, render(study, table))
    return page


write_report = write
