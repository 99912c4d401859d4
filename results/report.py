"""Write a study's report: tables, an HTML page, a Markdown page and its pictures."""

from __future__ import annotations

from pathlib import Path

from results.analysis.study_analysis import ReportOptions, analyse
from results.data.folders import read_study
from results.data.trials_table import table_of, write_table
from results.page.page import Page
from results.page.sections import page_of
from results.render import html as report_html
from results.render import markdown, matplotlib_svg
from trial.store.files import write_atomically
from trial.store.folders import StudyFolder


def write_report(study: StudyFolder, options: ReportOptions | None = None) -> Path:
    """Write the whole report into the study's `report` folder; also while the study runs.

    `report.html` is one file that needs no network; beside it `report.md` with its pictures in
    `figures/`, `trials.csv` and `trials.parquet`. Equal folders give equal bytes.

    Returns:
        The path of `report.html`.
    """
    found = read_study(study)
    # The tables do not wait for the analysis.
    write_table(table_of(found), study.report)
    analysis = analyse(found, options)
    return write_page(page_of(analysis), study.report, "report")


def write(study: StudyFolder) -> Path:
    """Write the whole report; returns the path of `report.md`."""
    return write_report(study).with_suffix(".md")


def write_page(page: Page, folder: Path, name: str) -> Path:
    """Write `name`.html, `name`.md and the pictures; returns the path of the HTML."""
    pictures = folder / ("figures" if name == "report" else f"{name}-figures")
    if pictures.is_symlink():
        pictures.unlink()
    pictures.mkdir(parents=True, exist_ok=True)
    for earlier in pictures.glob("*.svg"):
        earlier.unlink()
    for chart in page.charts():
        (pictures / f"{chart.key}.svg").write_text(matplotlib_svg.svg(chart), encoding="utf-8")
    write_atomically(folder / f"{name}.md", markdown.render(page, pictures.name))
    html = folder / f"{name}.html"
    write_atomically(html, report_html.render(page))
    return html
