"""Explain: from trial folders alone to a table and a report.

Names are loaded when first used: importing `results` costs nothing, drawing costs when drawing.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from results.comparison import compare
    from results.findings import Options
    from results.recommend import recommended
    from results.report import write, write_report
    from results.show import print_status, print_table
    from results.table import trials_table, write_table

__all__ = [
    "Options", "compare", "preload", "print_status", "print_table", "recommended",
    "trials_table", "write", "write_report", "write_table",
]  # fmt: skip

_HOME = {
    "Options": "results.findings",
    "compare": "results.comparison",
    "print_status": "results.show",
    "print_table": "results.show",
    "recommended": "results.recommend",
    "trials_table": "results.table",
    "write": "results.report",
    "write_report": "results.report",
    "write_table": "results.table",
}

_HEAVY = (
    "results.report", "results.show", "matplotlib.backends.backend_svg", "matplotlib.figure",
    "optuna.importance",
)  # fmt: skip


def preload() -> None:
    """Import what a report takes, for a thread that does so while there is nothing else to do.

    What fails here fails again where it is needed, or the command has ended meanwhile.
    """
    with contextlib.suppress(Exception):
        for name in _HEAVY:
            importlib.import_module(name)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'results' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
