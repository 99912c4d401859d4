"""Train a finished trial for longer: a new trial that goes on from its last checkpoint.

The finished trial keeps its number, its result and its adapter; the longer one gets a number of its
own, and Optuna is told both.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from sweep.study import OptunaDecider, renumbered
from trial import document
from trial.config import TrialConfig, parse
from trial.folder import StudyFolder, TrialFolder
from trial.problems import ConfigError, Problem


def prolong(
    study: StudyFolder, decider: OptunaDecider, number: int, overrides: Sequence[str]
) -> int:
    """Put the longer trial in flight, to be taken up by the driver; returns its number.

    Raises:
        ConfigError: the trial cannot go on, or the overrides do not make it longer.
    """
    source = study.trial(number)
    config = _longer(source, number, overrides)
    new = decider.prolong(number, config)
    folder = study.trial(new)
    folder.path.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source.checkpoints, folder.checkpoints)
    if source.metrics.exists():
        shutil.copy(source.metrics, folder.metrics)
    # The configuration comes last: a folder that has one has the checkpoint too.
    TrialFolder.create(folder.path, renumbered(config, new))
    return new


def _longer(source: TrialFolder, number: int, overrides: Sequence[str]) -> TrialConfig:
    """The finished trial's configuration with the overrides."""
    result = source.read_result() if source.result.exists() else None
    if result is None or result.state != "complete":
        state = result.state if result else "not finished"
        raise _refuse(f"a complete trial; trial {number} is {state}")
    if not source.checkpoints.exists():
        rule = "resources.keep_checkpoints says how many of the best keep theirs"
        raise _refuse(f"a trial that has its last checkpoint, trial {number} has not: {rule}")
    old = source.read_config()
    content = old.model_dump(mode="json")
    for text in overrides:
        key, _, value = text.partition("=")
        section, _, name = key.strip().partition(".")
        if section != "training" or not name:
            raise ConfigError([Problem(key, "only training.* can change when a trial goes on")])
        content["training"][name] = document.parse(value, f"--set {text}").content
    content["origin"]["continues"] = number
    config = parse(content)
    if _length(config) <= _length(old):
        rule = "more training.max_steps or training.num_train_epochs than before"
        raise ConfigError([Problem("--set", rule, ", ".join(overrides) or "nothing")])
    return config


def _refuse(rule: str) -> ConfigError:
    return ConfigError([Problem("--continue", rule)])


def _length(config: TrialConfig) -> tuple[float, float]:
    """Optimizer steps, and epochs where no steps are given."""
    training = config.training
    steps = float(training["max_steps"])
    return (steps, 0.0) if steps > 0 else (0.0, float(training["num_train_epochs"]))
