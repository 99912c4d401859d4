"""Truth ratios of a reference trial, which forget quality compares with. Torch-free."""

from __future__ import annotations

import json
import math
from pathlib import Path

from trial.config.errors import ConfigError, Problem
from trial.store.folders import TrialFolder

KEY = "evaluation.retain_model"


def read_ratios(folder: str | None) -> list[float] | None:
    """Truth ratios of a trial's forget set; None when no trial is named.

    Raises:
        ConfigError: that trial has none.
    """
    if folder is None:
        return None
    file = TrialFolder(Path(folder).expanduser()).truth_ratios
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["forget"]
        ratios = [float(value) for value in found if math.isfinite(float(value))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        rule = f"the folder of a trial that has measured truth ratios ({error})"
        raise ConfigError([Problem(KEY, rule, repr(folder))]) from error
    if not ratios:
        rule = f"the folder of a trial with truth ratios in {file.name}"
        raise ConfigError([Problem(KEY, rule, repr(folder))])
    return ratios
