"""Read trial folders and write tables and reports.

Public names are imported on first use, so that `import results` loads no plotting library.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from results.analysis.recommend import recommended
    from results.analysis.study_analysis import ReportOptions
    from results.comparison import compare
    from results.data.trials_table import trials_table, write_table
    from results.render.console import print_status, print_table
    from results.report import write, write_report

__all__ = [
    "ReportOptions", "compare", "preload", "print_status", "print_table", "recommended",
    "trials_table", "write", "write_report", "write_table",
]  # fmt: skip

_HOME = {
    "ReportOptions": "results.analysis.study_analysis",
    "compare": "results.comparison",
    "print_status": "results.render.console",
    "print_table": "results.render.console",
    "recommended": "results.analysis.recommend",
    "trials_table": "results.data.trials_table",
    "write": "results.report",
    "write_report": "results.report",
    "write_table": "results.data.trials_table",
}

_HEAVY = (
    "results.report", "results.render.console", "matplotlib.backends.backend_svg",
    "matplotlib.figure", "optuna.importance",
)  # fmt: skip


def preload() -> None:
    """Import the modules that a report needs; called from a thread while trials run.

    Errors are ignored here: the import is repeated, and fails, where the module is used.
    """
    with contextlib.suppress(Exception):
        for name in _HEAVY:
            importlib.import_module(name)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'results' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
